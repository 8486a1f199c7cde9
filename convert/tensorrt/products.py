"""Matrix products as a decoder on a GPU wants them: fewer, larger, over all nodes of all sequences."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from lineahead.convert.tensorrt.rewriting import Writer, add_initializer, stand_between


def merge_products(graph: ir.Graph) -> int:
    """One product where several weights multiply the same value (query, key and value; gate and up).

    Returns:
        how many products there are fewer.
    """
    groups: dict[ir.Value, list[ir.Node]] = defaultdict(list)
    for node in graph:
        if node.op_type == "MatMul" and _own_weight(node) is not None and node.inputs[0] is not None:
            groups[node.inputs[0]].append(node)
    saved = 0
    for operand, nodes in groups.items():
        if len(nodes) > 1:
            _merge(graph, operand, nodes)
            saved += len(nodes) - 1
    return saved


def _own_weight(node: ir.Node) -> ir.TensorProtocol | None:
    weight = node.inputs[1]
    if weight is None or weight.const_value is None or len(weight.const_value.shape) != 2:
        return None
    return weight.const_value if len(weight.uses()) == 1 else None


def _merge(graph: ir.Graph, operand: ir.Value, nodes: Sequence[ir.Node]) -> None:
    weights = [value for node in nodes if (value := node.inputs[1]) is not None]
    tensors = [value.const_value for value in weights if value.const_value is not None]
    widths = [tensor.numpy().shape[1] for tensor in tensors]
    rows, dtype = tensors[0].numpy().shape[0], tensors[0].dtype

    def joined() -> ir.Tensor[Any]:
        return ir.Tensor(np.concatenate([tensor.numpy() for tensor in tensors], 1), dtype=dtype)

    lazy = ir.LazyTensor(joined, dtype=dtype, shape=ir.Shape([rows, sum(widths)]))
    weight = add_initializer(graph, "+".join(str(value.name) for value in weights), lazy)
    writer = Writer(graph)
    product = writer.op("MatMul", [operand, weight])
    sizes = writer.constant(widths)
    sizes.name = _free(graph, sizes, f"{weight.name}.widths")
    parts = writer.several("Split", [product, sizes], len(nodes), axis=-1)
    product.type, product.shape = _type(nodes[0].outputs[0]), _with_width(nodes[0].outputs[0], sum(widths))
    for part, node in zip(parts, nodes, strict=True):
        part.type, part.shape = node.outputs[0].type, node.outputs[0].shape
    first = min(nodes, key=lambda node: _place(graph, node))
    graph.insert_before(first, writer.nodes)
    for part, node in zip(parts, nodes, strict=True):
        ir.convenience.replace_all_uses_with(node.outputs[0], part)
        graph.remove(node, safe=True)
    for value in weights:
        graph.initializers.pop(str(value.name))


def _free(graph: ir.Graph, value: ir.Value, name: str) -> str:
    graph.initializers.pop(str(value.name))
    value.name = name
    graph.initializers[name] = value
    return name


def _place(graph: ir.Graph, node: ir.Node) -> int:
    for place, one in enumerate(graph):
        if one is node:
            return place
    raise AssertionError("the node is not in the graph")


def _with_width(value: ir.Value, width: int) -> ir.Shape | None:
    return None if value.shape is None else ir.Shape([*value.shape[:-1], width])


def flatten_products(graph: ir.Graph) -> int:
    """Products with a weight as ``[B * T, K] x [K, N]``: as ``[B, T, K]`` they may run as B small ones.

    Returns:
        how many there were.
    """
    shapes: dict[tuple[str, ...], ir.Value] = {}
    writer, count = Writer(graph), 0
    for node in list(graph):
        x = node.inputs[0] if node.op_type == "MatMul" else None
        weight = node.inputs[1] if x is not None else None
        if x is None or weight is None or x.shape is None or len(x.shape) != 3 or not _is_weight(weight):
            continue
        width = _columns(weight)
        key = (*(str(axis) for axis in x.shape[:-1]), str(width))
        writer.nodes, count = [], count + 1
        flat = writer.op("Reshape", [x, writer.constant([-1, _rows(weight)])])
        flat.type = _type(x)
        if key not in shapes:
            zero, last = writer.constant([0]), writer.constant([-1])
            lead = writer.op("Slice", [writer.op("Shape", [x]), zero, last, zero])
            shapes[key] = writer.op("Concat", [lead, writer.constant([width])], axis=0)
        before = list(writer.nodes)
        graph.insert_before(node, before)
        node.replace_input_with(0, flat)
        output = node.outputs[0]
        back = ir.node("Reshape", [output, shapes[key]])
        back.outputs[0].type, back.outputs[0].shape = _type(output), output.shape
        stand_between(graph, output, back)
        output.shape = None
    return count


def _type(value: ir.Value) -> ir.TensorType | None:
    """A type like that of `value`; one that two values share would change for both."""
    return None if value.dtype is None else ir.TensorType(value.dtype)


def _is_weight(value: ir.Value) -> bool:
    return _matrix(value) is not None


def _matrix(value: ir.Value) -> tuple[int, int] | None:
    """Rows and columns of a weight, transposed or not."""
    if value.const_value is not None:
        shape = value.const_value.numpy().shape
        return (shape[0], shape[1]) if len(shape) == 2 else None
    node = value.producer()
    if node is None or node.op_type != "Transpose" or node.inputs[0] is None:
        return None
    inner = _matrix(node.inputs[0])
    return inner and (inner[1], inner[0])


def _rows(value: ir.Value) -> int:
    found = _matrix(value)
    assert found is not None
    return found[0]


def _columns(value: ir.Value) -> int:
    found = _matrix(value)
    assert found is not None
    return found[1]
