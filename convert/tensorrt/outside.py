"""Large weights as inputs of an engine instead of constants in it.

TensorRT 8.6 spends 0.3 microseconds of one processor on every number of every weight and profile
(``docs/notes/tensorrt.md``); what is given at run time costs a build nothing, and engines can share it.
"""

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
from safetensors.numpy import save_file

from lineahead.plugins.step_graph import WEIGHT
from lineahead.plugins.tensorrt.weights import SOURCE_KEY, STORED

LEAST = 1 << 20  # bytes


def take_out(graph: ir.Graph, *, least: int = LEAST) -> dict[str, ir.TensorProtocol]:
    """Make weights inputs called ``weight.NAME``, in place.

    Args:
        graph: lowered, its types settled.
        least: bytes of the smallest weight that is taken out; vectors stay.

    Returns:
        the weights by the inputs' names.
    """
    found: dict[str, ir.TensorProtocol] = {}
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.nbytes < least or len(tensor.shape) != 2:
            continue
        if not tensor.dtype.is_floating_point():
            continue
        graph.initializers.pop(name)
        value.name = f"{WEIGHT}{name}"
        value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape([int(axis) for axis in tensor.shape])  # type: ignore[arg-type]
        value.const_value = None
        graph.inputs.append(value)
        found[value.name] = tensor
    return found


def save_weights(weights: Mapping[str, ir.TensorProtocol], path: Path, *, graph_sha256: str) -> None:
    """Write what :func:`take_out` took out; ``plugins/tensorrt/weights.py`` reads it.

    Args:
        weights: by the inputs' names.
        path: the file.
        graph_sha256: of the ONNX file that they are from, kept in the header.
    """
    arrays = {name: tensor.numpy() for name, tensor in weights.items()}
    stored = {name: one.view(STORED.get(one.dtype.name, one.dtype)) for name, one in arrays.items()}
    save_file(stored, path, metadata={SOURCE_KEY: graph_sha256})
