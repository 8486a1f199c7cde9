"""The step graph in the operator set that TensorRT's oldest supported parser reads: opset 17, int32 inputs.

TensorRT 8.6 knows opsets up to 17 and computes no int64. What is newer is spelled out here; later versions
read the same graph. Every rule keeps the meaning, so the lowered graph, with the function bodies attached
again, says in ONNX Runtime what the original says (:func:`checkable`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from lineahead.convert.tensorrt.passes import simplify
from lineahead.convert.tensorrt.rewriting import Owner, Writer, known, rewrite, stand_between
from lineahead.errors import ExportError
from lineahead.plugins.augmented_attention.schema import CALL, DOMAIN, INPUTS, OP_TYPE
from lineahead.plugins.augmented_attention.tensorrt import OWN_FIELDS
from lineahead.plugins.step_fusions.schema import FUSIONS
from lineahead.plugins.step_graph import CALL_INPUTS, LENGTH_IN, LENGTH_OUT

OPSET, IR_VERSION = 17, 8
FLOAT, HALF, INT32, INT64 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.INT32, ir.DataType.INT64
WANTED = {"ancestors": ir.DataType.BOOL, "positions": INT32, **dict.fromkeys(CALL[1:], INT64)}
REDUCTIONS = ("ReduceMax", "ReduceMin", "ReduceMean", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSumExp")
CHANGED_ATTRIBUTES = {"Cast": "saturate", "Reshape": "allowzero"}


def lower(model: ir.Model) -> None:
    """Rewrite a step graph, or a draft graph, and the function bodies in it, in place.

    Raises:
        ExportError: when the graph has something that has no equivalent.
    """
    _check(model)
    owners: list[Owner] = [model.graph, *model.functions.values()]
    for owner in owners:
        rewrite(owner, _RULES)
        owner.opset_imports[""] = OPSET
    model.ir_version = IR_VERSION
    _narrow_inputs(model.graph)
    simplify(model)


def _check(model: ir.Model) -> None:
    names = {value.name for value in model.graph.inputs}
    grows = [one for one in names if one and one.startswith("past.") and one.endswith((".key", ".value"))]
    if grows:
        raise ExportError(
            f"layers keep softmax attention ({sorted(grows)[0]}), which no TensorRT plugin here computes",
            hint="Convert every layer, or decode with ONNX Runtime.",
        )


def _narrow_inputs(graph: ir.Graph) -> None:
    """Make the call's inputs int32: the operator's nodes take them as they are, all others a Cast of them."""
    wanted = [value for value in graph.inputs if value.name in (*CALL_INPUTS, LENGTH_IN)]
    for value in wanted:
        value.dtype = INT32
        cast = ir.node("Cast", [value], {"to": int(INT64)})
        cast.outputs[0].dtype, cast.outputs[0].shape = INT64, value.shape
        for use in list(value.uses()):
            if use.node is not cast and (use.node.domain, use.node.op_type) != (DOMAIN, OP_TYPE):
                use.node.replace_input_with(use.idx, cast.outputs[0])
        if cast.outputs[0].uses():
            graph.insert_before(graph[0], cast)
        else:
            cast.replace_input_with(0, None)
    # The caller counts lengths: it knows what it accepted.
    graph.outputs[:] = [value for value in graph.outputs if value.name != LENGTH_OUT]


def checkable(model: ir.Model) -> None:
    """Make a lowered graph, bodies attached, valid for ONNX Runtime: bodies take int64, bool and float32."""
    for node in list(model.graph):
        if node.domain != DOMAIN:
            continue
        for name in OWN_FIELDS:
            node.attributes.pop(name, None)
        for place, name in enumerate(INPUTS if node.op_type == OP_TYPE else FUSIONS[node.op_type].inputs):
            value = node.inputs[place]
            assert value is not None
            if name in WANTED or value.dtype != FLOAT:
                cast = ir.node("Cast", [value], {"to": int(WANTED.get(name, FLOAT))})
                model.graph.insert_before(node, cast)
                node.replace_input_with(place, cast.outputs[0])
        for output in node.outputs:
            if output.dtype not in (None, FLOAT):
                cast = ir.node("Cast", [output], {"to": int(output.dtype)})
                cast.outputs[0].dtype, cast.outputs[0].shape = output.dtype, output.shape
                stand_between(model.graph, output, cast)
                output.dtype = FLOAT
    simplify(model)


def without_bodies(model: ir.Model) -> None:
    """Leave the operator's nodes bare, for the parser to find the plugin."""
    model.functions.clear()
    for node in model.graph:
        node.overload = ""


def _reduction(writer: Writer, node: ir.Node) -> None:
    """Axes as an attribute, as before opset 18."""
    axes = known(node.inputs[1]) if len(node.inputs) > 1 else None
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        if axes is None:
            raise ExportError(
                f"{node.op_type} {node.name!r} reduces over computed axes",
                hint="This architecture cannot be exported to TensorRT; decode it with ONNX Runtime.",
            )
        node.replace_input_with(1, None)
        node.resize_inputs(1)
        node.attributes["axes"] = ir.AttrInt64s("axes", [int(axis) for axis in axes.reshape(-1)])
    node.attributes.pop("noop_with_empty_axes", None)


def _plain(writer: Writer, node: ir.Node) -> None:
    """Drop an attribute whose default says the same here: no size is 0, no value overflows."""
    node.attributes.pop(CHANGED_ATTRIBUTES[node.op_type], None)


def _split(writer: Writer, node: ir.Node) -> None:
    """Equal parts by `num_outputs` became possible in opset 18; without sizes opset 17 splits evenly too."""
    node.attributes.pop("num_outputs", None)


def _shape(writer: Writer, node: ir.Node) -> ir.Value | None:
    """A part of a shape as a slice of the whole, which every parser reads."""
    start, end = (node.attributes[x].as_int() if x in node.attributes else d for x, d in _ENDS)
    if start == 0 and end == _ENDS[1][1]:
        node.attributes.clear()
        return None
    whole = writer.op("Shape", _inputs(node))
    bounds = [writer.constant([x]) for x in (start, end)]
    return writer.op("Slice", [whole, *bounds, writer.constant([0])])


_ENDS = (("start", 0), ("end", np.iinfo(np.int32).max))


def _rms_norm(writer: Writer, node: ir.Node) -> ir.Value:
    """RMS norm, x / sqrt(mean(x^2) + eps) * weight over the last axis; its root is taken in float32."""
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    if axis != -1:
        raise ExportError(f"RMSNormalization over axis {axis}", hint="Only the last axis is supported.")
    x, weight = _inputs(node)[:2]
    mean = writer.op("ReduceMean", [writer.op("Mul", [x, x])], axes=[-1], keepdims=1)
    root = writer.op("Sqrt", [writer.op("Add", [mean, writer.constant(epsilon, np.float32)])])
    for made in writer.nodes:
        made.metadata_props["float32"] = "1"
    scaled = writer.op("Div", [x, root])
    writer.nodes[-1].metadata_props["float32"] = "1"
    scaled = writer.op("Mul", [scaled, weight])
    return scaled


def _rotary(writer: Writer, node: ir.Node) -> ir.Value:
    """Rotate halves (or pairs) of the last axis of ``[B, H, T, D]`` by angles ``[B, T, D / 2]``."""
    inputs = _inputs(node)
    whole = (
        node.attributes["rotary_embedding_dim"].as_int() if "rotary_embedding_dim" in node.attributes else 0
    )
    if len(inputs) != 3 or whole or inputs[0].shape is None or len(inputs[0].shape) != 4:
        raise ExportError(
            "RotaryEmbedding of this form (position ids, a part of the head, or 3 axes) is not supported",
            hint="Decode this model with ONNX Runtime, and report its config.json.",
        )
    x, cos, sin = inputs
    if "interleaved" in node.attributes and node.attributes["interleaved"].as_int():
        raise ExportError("interleaved RotaryEmbedding is not supported", hint="Decode it with ONNX Runtime.")
    heads = writer.constant([1])
    cos, sin = (writer.op("Unsqueeze", [angle, heads]) for angle in (cos, sin))
    both = writer.op("Concat", [cos, cos], axis=-1)
    turned = writer.op("Concat", [writer.op("Neg", [sin]), sin], axis=-1)
    first, second = writer.several("Split", [x], 2, axis=-1)
    swapped = writer.op("Concat", [second, first], axis=-1)
    left, right = writer.op("Mul", [x, both]), writer.op("Mul", [swapped, turned])
    return writer.op("Add", [left, right])


def _gelu(writer: Writer, node: ir.Node) -> ir.Value:
    """By its definition: exact with Erf, or approximate with Tanh."""
    x = _inputs(node)[0]
    half, one = writer.constant(0.5, np.float32), writer.constant(1.0, np.float32)
    if "approximate" in node.attributes and node.attributes["approximate"].as_string() == "tanh":
        cube = writer.op("Mul", [writer.op("Mul", [x, x]), x])
        cube = writer.op("Mul", [cube, writer.constant(0.044715, np.float32)])
        inner = writer.op(
            "Mul", [writer.op("Add", [x, cube]), writer.constant((2 / np.pi) ** 0.5, np.float32)]
        )
        curve = writer.op("Tanh", [inner])
    else:
        curve = writer.op("Erf", [writer.op("Mul", [x, writer.constant(0.5**0.5, np.float32)])])
    return writer.op("Mul", [writer.op("Mul", [x, half]), writer.op("Add", [curve, one])])


def _inputs(node: ir.Node) -> Sequence[ir.Value]:
    return [value for value in node.inputs if value is not None]


_RULES: dict[str, Any] = {
    **dict.fromkeys(REDUCTIONS, _reduction),
    **dict.fromkeys(CHANGED_ATTRIBUTES, _plain),
    "Split": _split,
    "Shape": _shape,
    "RMSNormalization": _rms_norm,
    "RotaryEmbedding": _rotary,
    "Gelu": _gelu,
}
