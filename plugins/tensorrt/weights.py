"""Weights that engines take as inputs: one file beside them, on the device once for all of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from lineahead.errors import ArtifactError
from lineahead.plugins.step_graph import WEIGHT
from lineahead.plugins.tensorrt.cuda import Device
from lineahead.plugins.tensorrt.engine import Tensor

SOURCE_KEY = "graph_sha256"
STORED = {"bfloat16": "uint16"}  # NumPy alone has no bfloat16
HINT = "Build the engine again: `lineahead export tensorrt ARTIFACT --outside`."


def weights_name(precision: str) -> str:
    """File name of the weights of a precision."""
    return f"weights_{precision}.safetensors"


def require_weights(path: Path, graph_sha256: str) -> None:
    """Refuse a weights file that is missing or of another ONNX graph; only its header is read.

    Args:
        path: written by ``lineahead export tensorrt --outside``.
        graph_sha256: of the ONNX file that the engine was made from.

    Raises:
        ArtifactError: saying which.
    """
    try:
        with safe_open(path, framework="np") as file:
            source = (file.metadata() or {}).get(SOURCE_KEY)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path}: weights cannot be read: {error}", hint=HINT) from error
    if source != graph_sha256:
        raise ArtifactError(f"{path}: weights of another ONNX graph than the engine beside it", hint=HINT)


def upload_weights(path: Path, tensors: Mapping[str, Tensor], device: Device) -> dict[str, int]:
    """Put the weights that an engine asks for on the device; names, shapes and types are compared.

    Args:
        path: written by ``lineahead export tensorrt --outside``.
        tensors: of the engine; inputs called ``weight.*`` are its weights.
        device: where.

    Returns:
        device addresses by the inputs' names.

    Raises:
        ArtifactError: when the file is missing or cut short, or has no such weight.
    """
    wanted = [one for name, one in tensors.items() if name.startswith(WEIGHT)]
    found: dict[str, int] = {}
    try:
        with safe_open(path, framework="np") as file:
            names = set(file.keys())
            for tensor in wanted:
                array = file.get_tensor(tensor.name) if tensor.name in names else None
                stored = STORED.get(tensor.dtype, tensor.dtype)
                if array is None or (array.shape, array.dtype.name) != (tensor.shape, stored):
                    raise ArtifactError(
                        f"{path}: no {tensor.name} of {tensor.dtype} {list(tensor.shape)}", hint=HINT
                    )
                found[tensor.name] = _upload(array, device)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path}: weights cannot be read: {error}", hint=HINT) from error
    return found


def _upload(array: npt.NDArray[Any], device: Device) -> int:
    address = device.allocate(array.nbytes)
    device.upload(address, np.ascontiguousarray(array))
    device.synchronize()  # the host's copy is freed next
    return address
