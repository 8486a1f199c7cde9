"""The graph of a draft engine: a step of the recurrent draft of ``onnx/draft.onnx``, its weights as numbers.

What ONNX Runtime runs there has weights in 8 bits and ends with the best candidates. An engine computes in
its own precision and ends with the scores: the plugin library chooses from them on the device.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from lineahead.convert.onnx.blockwise import Blocks
from lineahead.convert.tensorrt.graph import lower_for_engine
from lineahead.convert.tensorrt.rewriting import add_initializer, known
from lineahead.errors import ExportError
from lineahead.plugins.tensorrt.draft import GUESS, SCORES

CONTRIB = "com.microsoft"
HINT = "Export it again: `lineahead export onnx`; or pass --no-draft."


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What is known of a draft beside its graph.

    Attributes:
        names: ``[V']`` int32, the tokens that the scores are of.
        scale: mean size of a guess's weights, which hidden states have too.
        vocabulary: V, tokens that can be read.
    """

    names: NDArray[np.int32]
    scale: float
    vocabulary: int


def is_recurrent(source: Path) -> bool:
    """Whether an exported draft is the recurrent one."""
    return {value.name for value in ir.load(source).graph.outputs} >= {GUESS, "tokens", "log_probs"}


def draft_graph(source: Path, precision: str, *, fused: bool = False) -> tuple[ir.Model, Draft]:
    """A recurrent draft, lowered and in `precision`, and what is known of it.

    The graph goes from ``hidden_states [B, E]`` and ``input_ids [B]`` to ``guess [B, E]`` and
    ``scores [B, V']``.

    Args:
        source: ``onnx/draft.onnx``.
        precision: ``fp32``, ``fp16`` or ``bf16``.
        fused: use the plugin library's operators between products.

    Raises:
        ExportError: when it is not the graph that ``lineahead export onnx`` writes.
    """
    model = ir.load(source)
    names = _end_with_scores(model.graph)
    table = _plain_lookup(model.graph)
    _plain_weights(model.graph)
    common.RemoveUnusedNodesPass()(model)
    left = sorted({node.op_type for node in model.graph if node.domain == CONTRIB})
    if left:
        raise ExportError(f"the draft has {left[0]}, which has no equivalent in TensorRT", hint=HINT)
    model.opset_imports.pop(CONTRIB, None)
    scale = _guess_scale(model.graph)
    lower_for_engine(model, precision, fused=fused)
    return model, Draft(names=names, scale=scale, vocabulary=int(table.shape.numpy()[0]))


def _end_with_scores(graph: ir.Graph) -> NDArray[np.int32]:
    """Make the scores before the choice the second output; returns the tokens that they are of."""
    outputs = {value.name: value for value in graph.outputs}
    best = outputs["log_probs"].producer() if "log_probs" in outputs else None
    normal = best.inputs[0].producer() if best is not None and best.inputs[0] is not None else None
    lookup = outputs["tokens"].producer() if "tokens" in outputs else None
    names = known(lookup.inputs[0]) if lookup is not None else None
    if GUESS not in outputs or names is None or normal is None or normal.op_type != "LogSoftmax":
        raise ExportError("onnx/draft.onnx is not a recurrent draft", hint=HINT)
    scores = normal.inputs[0]
    assert scores is not None
    scores.name = SCORES
    graph.outputs[:] = [outputs[GUESS], scores]
    return np.ascontiguousarray(names.reshape(-1), np.int32)


def _plain_lookup(graph: ir.Graph) -> ir.TensorProtocol:
    """GatherND of single rows as Gather; returns the table of embeddings."""
    for node in list(graph):
        table, index = (*node.inputs, None, None)[:2]
        if node.op_type != "GatherND" or table is None or table.const_value is None or index is None:
            continue
        ids = index.producer()
        if ids is None or ids.op_type != "Unsqueeze" or len(table.const_value.shape) != 2:
            continue
        plain = ir.node("Gather", [table, ids.inputs[0]], {"axis": 0})
        _replace(graph, node, [plain], node.outputs[0], plain.outputs[0])
        return table.const_value
    raise ExportError("the draft looks up no embeddings", hint=HINT)


def _plain_weights(graph: ir.Graph) -> None:
    """Products by a constant as MatMul, whatever holds the constant; norms of sums as two nodes."""
    for node in list(graph):
        if node.op_type == "MatMulNBits":
            _product(graph, node)
        elif node.op_type == "Gemm":
            _transposed_product(graph, node)
        elif node.op_type == "SkipSimplifiedLayerNormalization":
            _norm(graph, node)


def _product(graph: ir.Graph, node: ir.Node) -> None:
    operand, *stored = node.inputs
    arrays = [known(value) for value in stored]
    if operand is None or len(arrays) < 3 or any(one is None for one in arrays[:3]):
        raise ExportError(f"{node.name}: a product whose weights are computed", hint=HINT)
    codes, scales, zeros = arrays[:3]
    bits, block = node.attributes.get_int("bits", 4), node.attributes.get_int("block_size", 32)
    columns, rows = node.attributes.get_int("K", 0), node.attributes.get_int("N", 0)

    def weight() -> ir.Tensor[Any]:
        blocks = Blocks(
            codes=codes.reshape(rows, -1, block * bits // 8),  # type: ignore[union-attr]
            scales=scales.reshape(rows, -1),  # type: ignore[union-attr]
            zeros=zeros.reshape(rows, -1),  # type: ignore[union-attr]
            bits=bits,
            block=block,
            columns=columns,
        )
        return ir.Tensor(np.ascontiguousarray(blocks.dequantized().T), dtype=ir.DataType.FLOAT)

    lazy = ir.LazyTensor(weight, dtype=ir.DataType.FLOAT, shape=ir.Shape([columns, rows]))
    name = str(stored[0].name if stored[0] is not None else node.name).removesuffix(".codes")
    made = [ir.node("MatMul", [operand, add_initializer(graph, name, lazy)])]
    if len(stored) > 4 and stored[4] is not None:
        _like(made[0].outputs[0], node.outputs[0])
        made.append(ir.node("Add", [made[0].outputs[0], stored[4]]))
    _replace(graph, node, made, node.outputs[0], made[-1].outputs[0])


def _transposed_product(graph: ir.Graph, node: ir.Node) -> None:
    """Gemm by the rows of a constant, or of the only block of one, as the exporter writes a linear layer."""
    operand, rows = node.inputs[:2]
    plain = [node.attributes.get_int("transA", 0), node.attributes.get_int("transB", 0)] == [0, 1]
    tensor = None if rows is None else _constant(rows)
    if operand is None or rows is None or tensor is None or not plain or len(node.inputs) > 2:
        return

    def weight() -> ir.Tensor[Any]:
        return ir.Tensor(np.ascontiguousarray(tensor().T), dtype=ir.DataType.FLOAT)

    shape = ir.Shape(tensor().shape[::-1])
    name = f"{rows.name}.T"
    lazy = ir.LazyTensor(weight, dtype=ir.DataType.FLOAT, shape=shape)
    product = ir.node("MatMul", [operand, add_initializer(graph, name, lazy)])
    _replace(graph, node, [product], node.outputs[0], product.outputs[0])


def _constant(value: ir.Value) -> Callable[[], NDArray[Any]] | None:
    """Reads a constant, or what a Gather picks from one."""
    if value.const_value is not None:
        return value.const_value.numpy
    node = value.producer()
    if node is None or node.op_type != "Gather" or node.attributes.get_int("axis", 0) != 0:
        return None
    table, index = node.inputs[0], known(node.inputs[1])
    if table is None or table.const_value is None or index is None:
        return None
    read = table.const_value.numpy
    return lambda: read()[index]


def _norm(graph: ir.Graph, node: ir.Node) -> None:
    left, right, weight = node.inputs[:3]
    total = ir.node("Add", [left, right])
    normed = ir.node(
        "RMSNormalization",
        [total.outputs[0], weight],
        {"axis": -1, "epsilon": node.attributes.get_float("epsilon", 1e-5)},
    )
    _like(total.outputs[0], node.outputs[0])
    if len(node.outputs) > 3:
        ir.convenience.replace_all_uses_with(node.outputs[3], total.outputs[0])
    _replace(graph, node, [total, normed], node.outputs[0], normed.outputs[0])


def _replace(graph: ir.Graph, node: ir.Node, made: list[ir.Node], old: ir.Value, new: ir.Value) -> None:
    """Put nodes where `node` was; the value keeps its name, as one of the graph's outputs too."""
    _like(new, old)
    graph.insert_before(node, made)
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    new.name, old.name = old.name, None
    graph.remove(node, safe=True)


def _like(new: ir.Value, old: ir.Value) -> None:
    new.type = ir.TensorType(ir.DataType.FLOAT)
    new.shape = old.shape


def _guess_scale(graph: ir.Graph) -> float:
    guess = next(value for value in graph.outputs if value.name == GUESS).producer()
    weight = known(guess.inputs[1]) if guess is not None and len(guess.inputs) > 1 else None
    return 1.0 if weight is None else float(np.abs(weight).mean())
