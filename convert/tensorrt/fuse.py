"""What stands between the products of a transformer block, as the plugin library's fused operators.

TensorRT 8.6 makes a kernel of nearly every node there. Works on the exported graph, where norms and rotary
embeddings are still one node, its products merged; what it does not recognise it leaves alone.
"""

from typing import Any

import numpy as np
import onnx_ir as ir

from lineahead.convert.tensorrt.rewriting import Writer, add_initializer, known
from lineahead.plugins.augmented_attention.schema import DOMAIN, OP_TYPE
from lineahead.plugins.step_fusions.onnx import attach_bodies, fused_node
from lineahead.plugins.step_fusions.schema import (
    ADD_RMS_NORM,
    FUSIONS,
    GATED_UNIT,
    RMS_NORM,
    ROTARY_HEADS,
    ROTARY_TABLE,
)


def fuse(model: ir.Model) -> None:
    """Replace what is recognised by fused nodes, their bodies attached, in place.

    Args:
        model: an exported step graph in float32, after :func:`products.merge_products`.
    """
    graph = model.graph
    for node in list(graph):
        if (node.domain, node.op_type) == (DOMAIN, OP_TYPE):
            _rotary(graph, node)
        elif _is(node, "RMSNormalization"):
            _norm(graph, node)
        elif _is(node, "Mul"):
            _gate(graph, node)
        elif _is(node, "Cos"):
            _table(graph, node)
    attach_bodies(model)


def count_fused(graph: ir.Graph) -> dict[str, int]:
    """How many fused nodes of each kind a graph has."""
    kinds = [node.op_type for node in graph if node.domain == DOMAIN]
    return {name: kinds.count(name) for name in FUSIONS}


def fused_text(graph: ir.Graph) -> str:
    """The same in words."""
    counts = count_fused(graph)
    norms = counts[ADD_RMS_NORM.name] + counts[RMS_NORM.name]
    rotary, gated = counts[ROTARY_HEADS.name], counts[GATED_UNIT.name]
    return f"fused {norms} norms, {rotary} rotary embeddings, {gated} gated units"


def _is(node: ir.Node | None, kind: str) -> bool:
    return node is not None and node.op_type == kind and not node.domain


def _stand_for(new: ir.Node, outputs: list[ir.Value]) -> None:
    """Let the outputs of `new` replace `outputs`, their names and places among the graph's outputs too."""
    for old, value in zip(outputs, new.outputs, strict=False):
        value.type, value.shape = old.type, old.shape
        ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
        value.name, old.name = old.name, None


def _norm(graph: ir.Graph, node: ir.Node) -> None:
    """RMSNormalization, with the residual addition before it where there is one."""
    x, weight = node.inputs[0], node.inputs[1]
    if x is None or weight is None or node.attributes.get_int("axis", -1) != -1:
        return
    if weight.const_value is None or len(weight.const_value.shape) != 1:
        return
    epsilon, addition = node.attributes.get_float("epsilon", 1e-5), x.producer()
    operands = _alike(addition)
    if addition is not None and operands:
        new = fused_node(ADD_RMS_NORM, [*operands, weight], epsilon=epsilon)
        graph.insert_before(addition, new)
        _stand_for(new, [node.outputs[0], x])
        graph.remove([node, addition], safe=True)
        return
    new = fused_node(RMS_NORM, [x, weight], epsilon=epsilon)
    graph.insert_before(node, new)
    _stand_for(new, [node.outputs[0]])
    graph.remove(node, safe=True)


def _alike(addition: ir.Node | None) -> list[ir.Value]:
    """Two computed values of one shape that an Add adds, what runs through all layers last; else none."""
    if addition is None or not _is(addition, "Add"):
        return []
    both = [one for one in addition.inputs if one is not None and one.const_value is None]
    same = len(both) == 2 and both[0].shape is not None and both[0].shape == both[1].shape
    if not same:
        return []
    return both if _is_update(both[0]) and not _is_update(both[1]) else both[::-1]


def _is_update(value: ir.Value) -> bool:
    """Whether a layer made it: a product, with its bias, or the norm of one."""
    node = value.producer()
    if node is None:
        return False
    return _is(node, "MatMul") or _bias(value) is not None or node.op_type == RMS_NORM.name


def _rotary(graph: ir.Graph, attention: ir.Node) -> None:
    """The way from a merged product to an attention's query, key and value."""
    ports = [one for one in attention.inputs[:3] if one is not None]
    if any(use.node is not attention for one in ports for use in one.uses()):
        return
    turned = [_rotation(one.producer()) for one in ports[:2]]
    if len(ports) != 3 or not all(turned) or turned[0][1:] != turned[1][1:]:
        return
    apart = [_heads_last(one) for one in (turned[0][0], turned[1][0], ports[2])]
    sizes = [_heads(one) for one in (turned[0][0], turned[1][0], ports[2])]
    dims = {dim for _, dim in sizes}
    if not all(apart) or len(dims) != 1 or sizes[1] != sizes[2]:
        return
    product = _merged(graph, attention, [one for one in apart if one is not None])
    if product is None:
        return
    head_dim = dims.pop()
    counts = {"heads": sizes[0][0], "kv_heads": sizes[1][0], "head_dim": head_dim}
    new = fused_node(ROTARY_HEADS, [product, *turned[0][1:]], **counts)
    graph.insert_before(attention, new)
    _stand_for(new, ports)


def _rotation(node: ir.Node | None) -> list[ir.Value]:
    """What is rotated by halves, cosines and sines; none of another form."""
    inputs = [] if node is None else [one for one in node.inputs if one is not None]
    if node is None or not _is(node, "RotaryEmbedding") or len(inputs) != 3:
        return []
    plain = not any(node.attributes.get_int(one, 0) for one in ("interleaved", "rotary_embedding_dim"))
    return inputs if plain else []


def _table(graph: ir.Graph, cosine: ir.Node) -> None:
    """Cosines and sines of positions times frequencies."""
    angle = cosine.inputs[0]
    product = None if angle is None else angle.producer()
    if angle is None or product is None or not _is(product, "Mul"):
        return
    operands = [one for one in product.inputs if one is not None]
    frequencies = next((one for one in operands if one.const_value is not None), None)
    real = next((one for one in operands if one.const_value is None), None)
    positions = _column(None if real is None else real.producer())
    if frequencies is None or positions is None or frequencies.const_value is None:
        return
    numbers = frequencies.const_value.numpy()
    if numbers.dtype != np.float32 or numbers.ndim == 0 or numbers.size != numbers.shape[-1]:
        return
    writer = Writer(graph)
    narrow = writer.op("Cast", [positions], to=int(ir.DataType.INT32))
    narrow.type, narrow.shape = ir.TensorType(ir.DataType.INT32), positions.shape
    flat = add_initializer(graph, f"{frequencies.name}.flat", ir.tensor(numbers.reshape(-1)))
    new = fused_node(ROTARY_TABLE, [narrow, flat])
    graph.insert_before(product, [*writer.nodes, new])
    for kind, value in zip(("Cos", "Sin"), new.outputs, strict=True):
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), angle.shape
        for one in [use.node for use in angle.uses() if _is(use.node, kind)]:
            ir.convenience.replace_all_uses_with(one.outputs[0], value, replace_graph_outputs=True)


def _column(cast: ir.Node | None) -> ir.Value | None:
    """What became a column of real numbers: ``[B, T]`` of ``[B, T, 1]``."""
    if cast is None or not _is(cast, "Cast") or cast.inputs[0] is None:
        return None
    column = cast.inputs[0].producer()
    if column is None or not _is(column, "Unsqueeze") or column.inputs[0] is None:
        return None
    value, axes = column.inputs[0], known(column.inputs[1])
    flat = value.shape is not None and len(value.shape) == 2
    return value if flat and axes is not None and axes.reshape(-1).tolist() in ([-1], [2]) else None


def _heads(value: ir.Value) -> tuple[int, int]:
    """Heads and their dimension of ``[B, H, T, D]``; zeros when they are not known."""
    shape = value.shape
    if shape is None or len(shape) != 4 or not isinstance(shape[1], int) or not isinstance(shape[3], int):
        return 0, 0
    return shape[1], shape[3]


def _heads_last(value: ir.Value) -> ir.Value | None:
    """``[B, T, H D]`` that was reshaped and transposed to be `value`."""
    transpose = value.producer()
    if transpose is None or not _is(transpose, "Transpose") or transpose.inputs[0] is None:
        return None
    if list(transpose.attributes["perm"].as_ints()) != [0, 2, 1, 3]:
        return None
    reshape = transpose.inputs[0].producer()
    flat = reshape.inputs[0] if reshape is not None and _is(reshape, "Reshape") else None
    heads, dim = _heads(value)
    return flat if flat is not None and heads and _width(flat) == heads * dim else None


def _width(value: ir.Value) -> int:
    """The last of three axes; 0 when it is not known."""
    last = value.shape[2] if value.shape is not None and len(value.shape) == 3 else 0
    return last if isinstance(last, int) else 0


def _merged(graph: ir.Graph, before: ir.Node, parts: list[ir.Value]) -> ir.Value | None:
    """The value that was split into `parts`, in that order; biases added to each are added to it."""
    biases = [_bias(one) for one in parts]
    if any(biases):
        if not all(biases):
            return None
        parts = [one for pair in biases if pair for one in pair[:1]]
    cut = parts[0].producer()
    if cut is None or not (_splits(cut, parts) or _slices(parts)):
        return None
    product = cut.inputs[0]
    tensors = [pair[1] for pair in biases if pair]
    if product is None or not tensors:
        return product
    joined = np.concatenate([one.const_value.numpy() for one in tensors if one.const_value is not None])
    bias = add_initializer(graph, "+".join(str(one.name) for one in tensors), ir.tensor(joined))
    addition = ir.node("Add", [product, bias])
    addition.outputs[0].type, addition.outputs[0].shape = product.type, product.shape
    graph.insert_before(before, addition)
    return addition.outputs[0]


def _bias(value: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """A value and the row that was added to it."""
    node = value.producer()
    if node is None or not _is(node, "Add"):
        return None
    inputs = [one for one in node.inputs if one is not None]
    rows = [one for one in inputs if one.const_value is not None and len(one.const_value.shape) == 1]
    rest = [one for one in inputs if one.const_value is None]
    fits = len(rows) == 1 and len(rest) == 1 and rows[0].const_value.shape[0] == _width(value)  # type: ignore[union-attr]
    return (rest[0], rows[0]) if fits else None


def _splits(node: ir.Node, parts: list[ir.Value]) -> bool:
    """Whether a node cuts the last of three axes into exactly `parts`."""
    if not _is(node, "Split") or list(node.outputs) != parts or node.inputs[0] is None:
        return False
    return node.attributes.get_int("axis", 0) in (-1, 2) and bool(_width(node.inputs[0]))


def _slices(parts: list[ir.Value]) -> bool:
    """Whether `parts` are slices of one value's last of three axes, side by side and all of it."""
    wholes, end = set(), 0
    for part in parts:
        node = part.producer()
        if node is None or not _is(node, "Slice") or len(node.inputs) not in (4, 5):
            return False
        bounds = [known(one) for one in node.inputs[1:]]
        if any(one is None or one.size != 1 for one in bounds):
            return False
        start, stop, axis, *step = (int(one.reshape(-1)[0]) for one in bounds if one is not None)
        if axis not in (-1, 2) or step not in ([], [1]) or start != end or stop != start + _width(part):
            return False
        wholes.add(node.inputs[0])
        end = stop
    return len(wholes) == 1 and all(one is not None and _width(one) == end for one in wholes)


def _gate(graph: ir.Graph, node: ir.Node) -> None:
    """``activation(gate) * up``, both halves of one product."""
    inputs = [one for one in node.inputs if one is not None]
    for active, up in (inputs, inputs[::-1]):
        name, gate = _activation(active.producer())
        split = None if gate is None else gate.producer()
        if gate is None or split is None or not _splits(split, [gate, up]) or _width(gate) != _width(up):
            continue
        product = split.inputs[0]
        assert product is not None
        new = fused_node(GATED_UNIT, [product], activation=name)
        graph.insert_before(node, new)
        _stand_for(new, [node.outputs[0]])
        return


def _activation(node: ir.Node | None) -> tuple[str, ir.Value | None]:
    """Name and operand of an activation that the gated unit has."""
    if node is None:
        return "", None
    if _is(node, "Gelu"):
        approximate: Any = node.attributes.get_string("approximate", "none")
        return ("gelu_tanh" if approximate == "tanh" else "gelu"), node.inputs[0]
    if _is(node, "Mul"):
        first, second = node.inputs
        for x, curve in ((first, second), (second, first)):
            sigmoid = None if curve is None else curve.producer()
            if sigmoid is not None and _is(sigmoid, "Sigmoid") and sigmoid.inputs[0] is x:
                return "silu", x
    return "", None
