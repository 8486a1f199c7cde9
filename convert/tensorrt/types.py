"""Element types of a graph's values, and the graph in 16 bits: products narrow, states and sums wide.

A TensorRT network takes its types from the graph, at once when it is strongly typed, by layer constraints in
version 8.6. So the narrow form is made here, where ONNX Runtime can check it.
"""

from typing import Any

import numpy as np
import onnx_ir as ir

from lineahead.convert.tensorrt.rewriting import add_initializer
from lineahead.plugins.augmented_attention.schema import DOMAIN, INPUTS, OP_TYPE, OUTPUTS
from lineahead.plugins.step_fusions.schema import FUSIONS

FLOAT = ir.DataType.FLOAT
NARROW = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
PRODUCTS = ("MatMul", "Gemm", "Conv")
INTEGERS = ("Shape", "Size", "ArgMax", "ArgMin", "NonZero")
TRUTHS = ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Not", "Xor", "IsNaN")
WIDE_MARK = "float32"
WIDE_PORTS = ("state", "norm")
RESULTS = ("logits", "hidden_states", "log_probs", "guess", "scores")


def infer_types(graph: ir.Graph) -> None:
    """Fill in the types that rewriting left open."""
    for node in graph:
        for place, output in enumerate(node.outputs):
            found = _type(node, place) if output.dtype is None else None
            if found is not None:
                output.dtype = found


def _type(node: ir.Node, place: int) -> ir.DataType | None:
    if node.op_type in INTEGERS or (node.op_type == "TopK" and place == 1):
        return ir.DataType.INT64
    if node.op_type in TRUTHS:
        return ir.DataType.BOOL
    if node.op_type == "Cast":
        return ir.DataType(node.attributes["to"].as_int())
    source = node.inputs[1 if node.op_type == "Where" else 0] if node.inputs else None
    return None if source is None else source.dtype


def narrow(model: ir.Model, precision: str) -> None:
    """Give a float32 graph 16-bit weights and activations, in place.

    Wide stay: the operator's sums (``state``, ``norm``), whatever :func:`lower.lower` marked, what depends on
    positions alone, and the results.

    Args:
        model: lowered, without bodies that must match (:func:`lower.checkable` casts for them).
        precision: ``fp16`` or ``bf16``.
    """
    infer_types(model.graph)
    _mark_angles(model.graph)
    work = _Narrowing(model.graph, NARROW[precision])
    for value in model.graph.inputs:
        if value.dtype == FLOAT and not (value.name or "").endswith(WIDE_PORTS) and "." in (value.name or ""):
            value.dtype = work.dtype
    for node in list(model.graph):
        work.visit(node)
    for place, value in enumerate(model.graph.outputs):
        if value.dtype == work.dtype and value.name in RESULTS:
            _widen_result(model.graph, place, value)
    unused = [name for name, value in model.graph.initializers.items() if not value.uses()]
    for name in unused:
        model.graph.initializers.pop(name)


def _mark_angles(graph: ir.Graph) -> None:
    """Mark what computes angles and their cosines: 16 bits are wrong by radians at late positions."""
    found = [node for node in graph if node.op_type in ("Cos", "Sin")]
    while found:
        node = found.pop()
        if node.op_type == "Cast" or node.outputs[0].dtype != FLOAT:
            continue
        node.metadata_props[WIDE_MARK] = "1"
        found += [one for value in node.inputs if value is not None and (one := value.producer()) is not None]


def _widen_result(graph: ir.Graph, place: int, value: ir.Value) -> None:
    """Give out `value` as float32; who reads it in the graph reads it as it is."""
    producer = value.producer()
    assert producer is not None
    cast = ir.node("Cast", [value], {"to": int(FLOAT)})
    graph.insert_after(producer, cast)
    result, name = cast.outputs[0], value.name
    result.dtype, result.shape = FLOAT, value.shape
    graph.outputs[place] = result
    value.name, result.name = f"{name}.narrow", name


class _Narrowing:
    """Casts and narrow weights, each made once."""

    def __init__(self, graph: ir.Graph, dtype: ir.DataType) -> None:
        self.graph, self.dtype = graph, dtype
        self._made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def visit(self, node: ir.Node) -> None:
        """Choose the node's type and give it operands of that type."""
        if (node.domain, node.op_type) == (DOMAIN, OP_TYPE):
            for place, name in enumerate(INPUTS):
                self._give(node, place, FLOAT if name in WIDE_PORTS else self.dtype)
            for name, output in zip(OUTPUTS, node.outputs, strict=True):
                output.dtype = FLOAT if name in WIDE_PORTS else self.dtype
            return
        if node.domain == DOMAIN:
            fusion = FUSIONS[node.op_type]
            for place, name in enumerate(fusion.inputs):
                self._give(node, place, FLOAT if name in fusion.wide else self.dtype)
            for name, output in zip(fusion.outputs, node.outputs, strict=True):
                output.dtype = FLOAT if name in fusion.wide else self.dtype
            return
        if node.op_type == "Cast":
            return
        floats = [
            place for place, value in enumerate(node.inputs) if value is not None and self._floats(value)
        ]
        if not floats:
            return
        chosen = self._chosen(node, floats)
        for place in floats:
            self._give(node, place, chosen)
        for output in node.outputs:
            if output.dtype in (FLOAT, self.dtype):
                output.dtype = chosen

    def _floats(self, value: ir.Value) -> bool:
        return value.dtype in (FLOAT, self.dtype)

    def _chosen(self, node: ir.Node, floats: list[int]) -> ir.DataType:
        if WIDE_MARK in node.metadata_props:
            return FLOAT
        computed = [value for i in floats if (value := node.inputs[i]) is not None and not _constant(value)]
        if node.op_type in PRODUCTS or not computed:
            return self.dtype
        return self.dtype if any(value.dtype == self.dtype for value in computed) else FLOAT

    def _give(self, node: ir.Node, place: int, dtype: ir.DataType) -> None:
        value = node.inputs[place]
        if value is None or not self._floats(value) or value.dtype == dtype:
            return
        if (value, dtype) not in self._made:
            self._made[value, dtype] = self._converted(value, node, dtype)
        node.replace_input_with(place, self._made[value, dtype])

    def _converted(self, value: ir.Value, node: ir.Node, dtype: ir.DataType) -> ir.Value:
        if value.const_value is not None:
            return add_initializer(
                self.graph, f"{value.name}.{dtype.short_name()}", as_type(value.const_value, dtype)
            )
        cast = ir.node("Cast", [value], {"to": int(dtype)})
        cast.outputs[0].dtype, cast.outputs[0].shape = dtype, value.shape
        producer = value.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], cast)
        else:
            self.graph.insert_after(producer, cast)
        return cast.outputs[0]


def _constant(value: ir.Value) -> bool:
    """Whether it is an initialiser, or a view of one."""
    if value.const_value is not None:
        return True
    node = value.producer()
    return node is not None and node.op_type == "Transpose" and _constant(node.inputs[0])  # type: ignore[arg-type]


def as_type(tensor: ir.TensorProtocol, dtype: ir.DataType) -> ir.LazyTensor:
    """`tensor` in another type, converted when it is written, so that weights pass through memory singly."""

    def convert() -> ir.Tensor[Any]:
        return ir.Tensor(np.ascontiguousarray(tensor.numpy()).astype(dtype.numpy()), dtype=dtype)

    return ir.LazyTensor(convert, dtype=dtype, shape=ir.Shape(tensor.numpy().shape))
