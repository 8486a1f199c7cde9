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


def weights_name(precision: str) -> str:
    """File name of the weights of a precision."""
    return f"weights_{precision}.safetensors"


def upload_weights(path: Path, tensors: Mapping[str, Tensor], device: Device) -> dict[str, int]:
    """Put the weights that an engine asks for on the device.

    Args:
        path: written by ``lineahead export tensorrt --weights outside``.
        tensors: of the engine; inputs called ``weight.*`` are its weights.
        device: where.

    Returns:
        device addresses by the inputs' names.

    Raises:
        ArtifactError: when the file is missing or damaged, or has no such weight.
    """
    hint = "Build the engine again: `lineahead export tensorrt ARTIFACT --weights outside`."
    wanted = [one for name, one in tensors.items() if name.startswith(WEIGHT)]
    found: dict[str, int] = {}
    try:
        with safe_open(path, framework="np") as file:
            names = set(file.keys())
            for tensor in wanted:
                array = file.get_tensor(tensor.name) if tensor.name in names else None
                if array is None or (array.shape, array.dtype.name) != (tensor.shape, tensor.dtype):
                    raise ArtifactError(
                        f"{path}: no {tensor.name} of {tensor.dtype} {list(tensor.shape)}", hint=hint
                    )
                found[tensor.name] = _upload(array, device)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path}: weights cannot be read: {error}", hint=hint) from error
    return found


def _upload(array: npt.NDArray[Any], device: Device) -> int:
    address = device.allocate(array.nbytes)
    device.upload(address, np.ascontiguousarray(array))
    device.synchronize()  # the host's copy is freed next
    return address
