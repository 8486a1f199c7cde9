"""Replacing nodes of a graph by others, with constants that are written once."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Owner = ir.Graph | ir.Function
Rules = dict[str, Callable[["Writer", ir.Node], ir.Value | None]]


class Writer:
    """Collects new nodes before they go into a graph or a function.

    Attributes:
        nodes: made so far, in order.
    """

    def __init__(self, owner: ir.Graph | ir.Function) -> None:
        """Write for `owner`; its constants become initialisers, or Constant nodes in a function."""
        self._owner = owner
        self._constants: dict[tuple[bytes, str, tuple[int, ...]], ir.Value] = {}
        self.nodes: list[ir.Node] = []

    def op(self, kind: str, inputs: Iterable[ir.Value], **attributes: Any) -> ir.Value:
        """A new node of one output, which is returned."""
        return self.several(kind, inputs, 1, **attributes)[0]

    def several(self, kind: str, inputs: Iterable[ir.Value], count: int, **attributes: Any) -> list[ir.Value]:
        """A new node and its outputs."""
        node = ir.node(kind, list(inputs), attributes, num_outputs=count)
        self.nodes.append(node)
        return list(node.outputs)

    def constant(self, value: Any, dtype: Any = np.int64) -> ir.Value:
        """A constant; equal ones are one."""
        array: NDArray[Any] = np.asarray(value, dtype)
        key = (array.tobytes(), str(array.dtype), array.shape)
        if key not in self._constants:
            self._constants[key] = self._make(array, f"constant.{len(self._constants)}")
        return self._constants[key]

    def _make(self, array: NDArray[Any], name: str) -> ir.Value:
        if isinstance(self._owner, ir.Function):
            node = ir.node("Constant", [], {"value": ir.tensor(array)})
            self._owner.insert_before(self._owner[0], node)
            return node.outputs[0]
        return add_initializer(self._owner, name, ir.tensor(array))


def add_initializer(graph: ir.Graph, name: str, tensor: Any) -> ir.Value:
    """Register `tensor` under a name that is free, `name` if it is."""
    unique, number = name, 1
    while unique in graph.initializers:
        unique, number = f"{name}.{number}", number + 1
    value = ir.Value(name=unique, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    graph.initializers[unique] = value
    return value


def known(value: ir.Value | None) -> NDArray[Any] | None:
    """What a value is, when it is a constant."""
    if value is None:
        return None
    if value.const_value is not None:
        return value.const_value.numpy()
    node = value.producer()
    if node is not None and node.op_type == "Constant" and "value" in node.attributes:
        return node.attributes["value"].as_tensor().numpy()
    return None


def rewrite(owner: Owner, rules: Rules) -> None:
    """Apply `rules` by operator type; a rule gives the value that replaces the node's first output, or None.

    A rule may also change the node in place and give None.
    """
    writer = Writer(owner)
    for node in list(owner):
        rule = rules.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if rule is None:
            continue
        writer.nodes = []
        value = rule(writer, node)
        if value is None:
            owner.insert_before(node, writer.nodes)
            continue
        old = node.outputs[0]
        ir.convenience.replace_nodes_and_values(owner, node, [node], writer.nodes, [old], [value])


def stand_between(graph: ir.Graph, value: ir.Value, node: ir.Node) -> None:
    """Let all users of `value`, the graph's outputs too, take the output of `node`, which reads it."""
    producer, new = value.producer(), node.outputs[0]
    assert producer is not None
    graph.insert_after(producer, node)
    if value.is_graph_output():
        name = value.name
        value.name, new.name = f"{name}.before.{node.op_type}", name
    ir.convenience.replace_all_uses_with(value, new, replace_graph_outputs=True)
    node.replace_input_with(0, value)
