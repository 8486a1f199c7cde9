"""A step graph with its weight matrices as blocks of 4- or 8-bit integers, for ONNX Runtime's MatMulNBits kernels."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lineahead.convert.onnx.blockwise import Blocks, Floats, quantize_blocks
from lineahead.convert.onnx.fusions import fuse_skip_norms

CONTRIB = "com.microsoft"
BLOCK = 32
ACCURACY_LEVEL = 4  # int8 activations inside the kernel: the only level with a fast 4-bit one on x86
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class _Product:
    """One matrix product by a constant: ``result = lhs @ weight.T + bias``."""

    node: ir.Node
    lhs: ir.Value
    weight: ir.Value
    rows_first: bool
    bias: ir.Value | None

    def rows(self) -> Floats:
        """The weight as ``[N, K]``."""
        tensor = self.weight.const_value
        assert tensor is not None
        array = tensor.numpy()
        return array if self.rows_first else array.T


def quantize(model: ir.Model, *, bits: int, progress: Progress | None = None) -> None:
    """Quantise every product by a constant matrix in place, and the embedding table.

    Products of one input (query, key and value; gate and up) become one product. A table that is also the LM head's
    matrix is stored once.

    Args:
        model: a step or draft graph in float32; weights may be lazy.
        bits: 4 or 8.
        progress: called with ``("quantize", done, total)``.
    """
    graph = model.graph
    groups = _groups(graph)
    tables = {node.inputs[0]: node for node in graph if _is_table(node)}
    done: dict[ir.Value, tuple[Blocks, dict[str, ir.Value]]] = {}
    for position, group in enumerate(groups):
        blocks = quantize_blocks(np.concatenate([one.rows() for one in group]), bits=bits, block=BLOCK)
        done[group[0].weight] = (blocks, _replace_products(graph, group, blocks))
        if progress is not None:
            progress("quantize", position + 1, len(groups) + len(tables))
    for table, node in tables.items():
        assert table is not None
        if table in done and done[table][0].codes.shape[0] == table.shape[0]:  # type: ignore[index]
            blocks, parts = done[table]
        else:
            assert table.const_value is not None
            blocks = quantize_blocks(table.const_value.numpy(), bits=bits, block=BLOCK)
            parts = _store(graph, table.name or "table", blocks)
        _replace_table(graph, node, blocks, parts)
    fuse_skip_norms(graph)
    ir.passes.common.RemoveUnusedNodesPass()(model)
    model.opset_imports[CONTRIB] = 1


def quantize_file(source: Path, target: Path, *, bits: int, progress: Progress | None = None) -> None:
    """Read `source`, quantise it, write `target` (and ``<target>.data``); see :func:`quantize`."""
    from lineahead.convert.onnx.graph import save

    model = ir.load(source)
    quantize(model, bits=bits, progress=progress)
    save(model, target)


def _groups(graph: ir.Graph) -> list[list[_Product]]:
    """Products by a constant, those of one input and without bias together, in graph order."""
    groups: dict[tuple[ir.Value, int], list[_Product]] = {}
    for position, node in enumerate(graph):
        product = _product(node)
        if product is not None:
            alone = product.bias is not None or node.op_type != "MatMul"
            groups.setdefault((product.lhs, position if alone else -1), []).append(product)
    return list(groups.values())


def _product(node: ir.Node) -> _Product | None:
    if node.domain or node.op_type not in ("MatMul", "Gemm"):
        return None
    lhs, weight = node.inputs[0], node.inputs[1]
    if lhs is None or weight is None or lhs.const_value is not None:
        return None
    rows_first, bias = False, None
    if node.op_type == "Gemm":
        plain = [node.attributes.get_int("transA", 0), node.attributes.get_float("alpha", 1.0)]
        if plain != [0, 1.0] or node.attributes.get_float("beta", 1.0) != 1.0:
            return None
        rows_first = bool(node.attributes.get_int("transB", 0))
        bias = node.inputs[2] if len(node.inputs) > 2 else None
    producer = weight.producer()
    if producer is not None and producer.op_type == "Transpose":
        rows_first, weight = not rows_first, producer.inputs[0]
    if weight is None or not weight.is_initializer() or weight.const_value is None:
        return None
    shape = weight.const_value.shape
    inner = shape[1] if rows_first and len(shape) == 2 else shape[0]
    if len(shape) != 2 or int(inner) < BLOCK or (bias is not None and not bias.is_initializer()):
        return None
    return _Product(node=node, lhs=lhs, weight=weight, rows_first=rows_first, bias=bias)


def _is_table(node: ir.Node) -> bool:
    table = node.inputs[0] if node.op_type == "Gather" and not node.domain else None
    if table is None or not table.is_initializer() or table.const_value is None:
        return False
    shape = table.const_value.shape
    return (
        len(shape) == 2
        and int(shape[1]) % BLOCK == 0
        and table.const_value.dtype == ir.DataType.FLOAT
        and node.attributes.get_int("axis", 0) == 0
    )


def _initializer(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.dtype, value.shape = value.const_value.dtype, ir.Shape(array.shape)  # type: ignore[union-attr]
    graph.register_initializer(value)
    return value


def _store(graph: ir.Graph, name: str, blocks: Blocks) -> dict[str, ir.Value]:
    parts = {"codes": blocks.codes, "scales": blocks.scales, "zeros": blocks.zeros}
    return {part: _initializer(graph, f"{name}.{part}", array) for part, array in parts.items()}


def _replace_products(graph: ir.Graph, group: list[_Product], blocks: Blocks) -> dict[str, ir.Value]:
    first, rows = group[0], blocks.codes.shape[0]
    parts = _store(graph, first.weight.name or first.node.name or "weight", blocks)
    inputs: list[ir.Value | None] = [first.lhs, parts["codes"], parts["scales"], parts["zeros"]]
    if first.bias is not None:
        inputs += [None, first.bias]
    product = ir.node(
        "MatMulNBits",
        inputs,
        {"K": blocks.columns, "N": rows, "bits": blocks.bits, "block_size": BLOCK, "accuracy_level": ACCURACY_LEVEL},
        domain=CONTRIB,
    )
    graph.insert_before(first.node, product)
    results = [product.outputs[0]]
    if len(group) > 1:
        widths = np.array([len(one.rows()) for one in group], np.int64)
        sizes = _initializer(graph, f"{parts['codes'].name}.widths", widths)
        split = ir.node("Split", [product.outputs[0], sizes], {"axis": -1}, num_outputs=len(group))
        graph.insert_before(first.node, split)
        results = list(split.outputs)
    for one, result in zip(group, results, strict=True):
        _substitute(graph, one.node, result)
        _release(graph, one.weight)
    return parts


def _replace_table(graph: ir.Graph, node: ir.Node, blocks: Blocks, parts: dict[str, ir.Value]) -> None:
    table, ids = node.inputs
    flat = _initializer(graph, f"{parts['codes'].name}.flat_shape", np.array([blocks.codes.shape[0], -1], np.int64))
    codes = ir.node("Reshape", [parts["codes"], flat])
    gather = ir.node(
        "GatherBlockQuantized",
        [codes.outputs[0], ids, parts["scales"], parts["zeros"]],
        {"bits": blocks.bits, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1},
        domain=CONTRIB,
    )
    graph.insert_before(node, [codes, gather])
    _substitute(graph, node, gather.outputs[0])
    assert table is not None
    _release(graph, table)


def _substitute(graph: ir.Graph, node: ir.Node, result: ir.Value) -> None:
    """Put `result` where the node's output was, keeping its name, and drop the node."""
    old = node.outputs[0]
    result.dtype, result.shape = old.dtype, old.shape
    ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
    name, old.name = old.name, None
    result.name = name
    graph.remove(node, safe=True)


def _release(graph: ir.Graph, weight: ir.Value) -> None:
    """Drop an initialiser, and the Transposes of it, once nothing else reads it."""
    for use in list(weight.uses()):
        if use.node.op_type == "Transpose" and not use.node.outputs[0].uses():
            graph.remove(use.node, safe=True)
    if not weight.uses() and weight.name in graph.initializers:
        graph.initializers.pop(weight.name)
