"""The step form as one ONNX node with a function body of standard operators.

The body is a second export of :func:`step.step` itself, so the algebra is written once. Whoever has a kernel
for the node
(an ONNX Runtime custom operator, a TensorRT plugin) ignores the body; everyone else inlines it.
"""

import functools
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes import common
from onnxscript.values import Opset
from torch import Tensor, nn

from lineahead.plugins.augmented_attention import feature_maps
from lineahead.plugins.augmented_attention.custom_op import KINDS, SETTINGS, attributes
from lineahead.plugins.augmented_attention.schema import (
    CALL,
    DOMAIN,
    INPUTS,
    OP_TYPE,
    OP_VERSION,
    OUTPUTS,
    STATE,
    AttentionSettings,
    LayerShape,
    state_shapes,
)
from lineahead.plugins.augmented_attention.step import step

FLOATS = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]
AXES = {
    "batch": {"min": 1, "max": 65536},
    "nodes": {"min": 1, "max": 65536},
    "rows": {"min": 1, "max": 65536},
    "accepts": {"min": 0, "max": 65536},
    "pending": {"min": 0, "max": 65536},
}


@dataclass(frozen=True, kw_only=True)
class Body:
    """What a function body depends on; layers that agree in it share one function.

    Attributes:
        settings: the operator's settings.
        shape: the layer's heads.
        scale: multiplier of ``q . k``.
    """

    settings: AttentionSettings
    shape: LayerShape
    scale: float


def register_schema() -> None:
    """Make the node known to the onnx package of this process, as the exporter and the checker require."""
    if onnx.defs.has(OP_TYPE, domain=DOMAIN):
        return
    schema = onnx.defs.OpSchema
    kinds = {"ancestors": "M", "state": "S", "norm": "S", **dict.fromkeys(CALL[1:], "I")}
    types = {
        str: schema.AttrType.STRING,
        float: schema.AttrType.FLOAT,
        int: schema.AttrType.INT,
        bool: schema.AttrType.INT,
    }
    onnx.defs.register_schema(
        schema(
            OP_TYPE,
            DOMAIN,
            OP_VERSION,
            doc="Commit the accepted rows of the previous call, then attend from every node of a tree.",
            inputs=[schema.FormalParameter(name, kinds.get(name, "T")) for name in INPUTS],
            outputs=[schema.FormalParameter(name, kinds.get(name, "T")) for name in OUTPUTS],
            type_constraints=[
                ("T", FLOATS, ""), ("S", FLOATS[:1], ""), ("I", ["tensor(int64)"], ""), ("M",
                ["tensor(bool)"], "")
            ],
            attributes=[
                *(schema.Attribute(name, types[KINDS[name]], "") for name in SETTINGS),
                schema.Attribute("scale", types[float], ""),
            ],
        )
    )  # fmt: skip


def translation_table() -> dict[Any, Any]:
    """For ``torch.onnx.export(custom_translation_table=...)``: the torch operator becomes one bare node."""
    register_schema()
    domain = Opset(DOMAIN, OP_VERSION)

    def node(*arguments: Any) -> Any:
        ports, rest = arguments[: len(INPUTS)], arguments[len(INPUTS) :]
        named = dict(zip([*SETTINGS, "scale"], rest, strict=True))
        named = {name: int(value) if isinstance(value, bool) else value for name, value in named.items()}
        return getattr(domain, OP_TYPE)(*ports, **named, _outputs=len(OUTPUTS))

    return {torch.ops.lineahead.augmented_attention.default: node}


def dimensions() -> dict[str, Any]:
    """Fresh dynamic axes of a step: batch, nodes, rows, accepts, pending; the last two may be 0."""
    return {name: torch.export.Dim(name, **bounds) for name, bounds in AXES.items()}


def sample_call(batch: int = 3, nodes: int = 5, accepts: int = 2) -> tuple[Tensor, ...]:
    """Example `ancestors, length, accept_index, accept_count`; sizes all differ, so that no axes are tied."""
    chain = torch.ones(nodes, nodes, dtype=torch.bool).tril().repeat(batch, 1, 1)
    index = torch.zeros(batch, accepts, dtype=torch.int64)
    return chain, torch.full((batch,), 7), index, torch.full((batch,), 1)


class _Step(nn.Module):
    """:func:`step.step` with its settings bound, as torch.export wants it."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, ancestors: Tensor, length: Tensor, accept_index:
            Tensor,
        accept_count: Tensor, state: Tensor, norm: Tensor, window_key: Tensor, window_value: Tensor,
            pending_key: Tensor,
        pending_value: Tensor, alpha: Tensor, local_scale: Tensor, conv: Tensor, query_map: Tensor, key_map:
            Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        ports = (
            query, key, value, ancestors, length, accept_index, accept_count, state, norm, window_key,
            window_value,
            pending_key, pending_value, alpha, local_scale, conv, query_map, key_map,
        )  # fmt: skip
        return step(*ports, settings=self.body.settings, scale=self.body.scale)


def _sample_ports(body: Body) -> dict[str, Tensor]:
    """Example operands of every port, a one-element tensor where the settings leave one unused."""
    settings, shape, batch, nodes, pending = body.settings, body.shape, 3, 5, 4
    feature_map = feature_maps.get(settings.feature_map) if settings.has_state else None
    columns = settings.feature_dim or shape.head_dim
    features = feature_map.width(shape.head_dim, columns) if feature_map else 0
    learned = feature_map is not None and feature_map.initial is not None
    heads, shared, dim, wide = shape.heads, shape.kv_heads, shape.head_dim, shape.value_dim
    present = state_shapes(settings, shape, features, batch)
    sizes: dict[str, tuple[int, ...]] = {
        "query": (batch, heads, nodes, dim),
        "key": (batch, shared, nodes, dim),
        "value": (batch, shared, nodes, wide),
        **{name: present.get(name, (1,)) for name in STATE},
        "pending_key": (batch, shared, pending, dim),
        "pending_value": (batch, shared, pending, wide),
        "alpha": (heads,),
        "local_scale": (heads,),
        "conv": (heads, settings.conv_taps) if settings.conv_taps else (1,),
        "query_map": (heads, dim, columns) if learned else (1,),
        "key_map": (shared, dim, columns) if learned else (1,),
    }
    tensors = {name: torch.rand(size) for name, size in sizes.items()}
    tensors |= dict(zip(CALL, sample_call(batch, nodes), strict=True))
    return {name: tensors[name] for name in INPUTS}


def _dynamic_axes(ports: dict[str, Tensor]) -> dict[str, dict[int, Any]]:
    axis = dimensions()
    batch, nodes, pending = axis["batch"], axis["nodes"], axis["pending"]
    table: dict[str, dict[int, Any]] = {name: {0: batch, 2: nodes} for name in ("query", "key", "value")}
    table |= {"ancestors": {0: batch, 1: nodes, 2: nodes}, "length": {0: batch}, "accept_count": {0: batch}}
    table |= {"accept_index": {0: batch, 1: axis["accepts"]}}
    table |= {name: {0: batch} for name in STATE if ports[name].ndim > 1}
    table |= {name: {0: batch, 2: pending} for name in ("pending_key", "pending_value")}
    return {name: table.get(name, {}) for name in INPUTS}


def exported(
    module: nn.Module,
    arguments: tuple[Tensor, ...],
    *,
    opset: int,
    inputs: Sequence[str],
    outputs: Sequence[str],
    axes: Any,
    translations: dict[Any, Any] | None = None,
) -> ir.Model:
    """``torch.onnx.export`` without its warnings about itself; weights stay references to the parameters.

    Args:
        module: what to trace.
        arguments: example inputs.
        opset: version of the default domain.
        inputs: names of the graph's inputs.
        outputs: names of its outputs.
        axes: dynamic axes, as torch.export takes them.
        translations: of custom operators.
    """
    registry = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registry.level
    registry.setLevel(logging.ERROR)  # it lists the torchvision operators that it cannot find
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module.eval(), arguments, dynamo=True, opset_version=opset, verbose=False,
                input_names=list(inputs),
                output_names=list(outputs), dynamic_shapes=axes, custom_translation_table=translations or {},
            )  # fmt: skip
    finally:
        registry.setLevel(level)
    assert program is not None
    return program.model


def function_body(body: Body, *, opset: int, overload: str = "") -> ir.Function:
    """The model-local function of `body`: :func:`step.step` traced on its own, once per process.

    Args:
        body: settings, heads and scale, baked in.
        opset: version of the default domain.
        overload: tells functions of one model apart; nodes carry the same string.
    """
    function = ir.serde.deserialize_function(_traced(body, opset))
    function.overload = overload
    return function


@functools.lru_cache(maxsize=64)
def _traced(body: Body, opset: int) -> onnx.FunctionProto:
    """What :func:`function_body` returns, without an overload; not to be changed."""
    ports = _sample_ports(body)
    model = exported(
        _Step(body),
        tuple(ports.values()),
        opset=opset,
        inputs=INPUTS,
        outputs=[f"{name}_out" for name in OUTPUTS],
        axes=_dynamic_axes(ports),
    )
    simplify(model)
    graph = model.graph
    _own_outputs(graph)
    constants = [
        ir.Node("", "Constant", [], [ir.AttrTensor("value", value.const_value)], outputs=[value])
        for value in [graph.initializers.pop(name) for name in list(graph.initializers)]
        if value.const_value is not None
    ]
    graph.insert_before(graph[0], constants)
    declared = [
        ir.convenience.convert_attribute(name, int(value) if isinstance(value, bool) else value)
        for name, value in attributes(body.settings, body.scale).items()
    ]
    function = ir.Function(DOMAIN, OP_TYPE, graph=graph, attributes=declared)
    function.opset_imports[""] = opset
    return ir.serde.serialize_function(function)


def simplify(model: ir.Model) -> None:
    """Merge equal subexpressions and constants in place; results stay bit-identical."""
    sequence = (
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
    )
    ir.passes.Sequential(*sequence)(model)


def _own_outputs(graph: ir.Graph) -> None:
    """Give every output its own node: what passes through, or is given out twice, gets an Identity."""
    seen: set[ir.Value] = set(graph.inputs)
    for position, value in enumerate(graph.outputs):
        if value in seen:
            node = ir.Node("", "Identity", [value])
            graph.append(node)
            graph.outputs[position] = node.outputs[0]
        seen.add(graph.outputs[position])
