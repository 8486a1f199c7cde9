"""The graph that an engine is built from, in ONNX Runtime: how far its own types take it from float32."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from lineahead.convert.onnx.rollout import Array, Backend
from lineahead.convert.tensorrt.graph import save_for_check
from lineahead.plugins.step_graph import LENGTH_IN, LENGTH_OUT

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int32)": np.int32}


def graph_backend(session: Any, names: Sequence[str], outputs: Sequence[str]) -> Backend:
    """A lowered step graph as a function of arrays, in the order of the exported graph's inputs and outputs.

    Args:
        session: an ``InferenceSession`` of it, bodies attached.
        names: inputs of the exported graph.
        outputs: its outputs; lengths, which the lowered graph does not return, are counted here.
    """
    types = {port.name: TYPES.get(port.type) for port in session.get_inputs()}
    results = [port.name for port in session.get_outputs()]

    def call(arrays: Sequence[Array]) -> Sequence[Array]:
        given = dict(zip(names, arrays, strict=True))
        found = session.run(None, {name: given[name].astype(kind) for name, kind in types.items()})
        made = {name: array.astype(np.float32) for name, array in zip(results, found, strict=True)}
        length = given[LENGTH_IN] + given["accept_count"]
        return [length if name == LENGTH_OUT else made[name] for name in outputs]

    return call


def twin(model: ir.Model, path: Path, names: Sequence[str], outputs: Sequence[str]) -> Backend:
    """:func:`graph_backend` of a graph in memory, which is written to `path` for it."""
    import onnxruntime

    save_for_check(model, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return graph_backend(session, names, outputs)
