"""The operator as a torch custom operator, as one ONNX node, and as that node's function body."""

import inspect

import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from lineahead.plugins.augmented_attention import onnx as form
from lineahead.plugins.augmented_attention.custom_op import SETTINGS, attributes, augmented_attention
from lineahead.plugins.augmented_attention.methods import PRESETS
from lineahead.plugins.augmented_attention.schema import (
    DOMAIN,
    INPUTS,
    OP_TYPE,
    OUTPUTS,
    AttentionSettings,
    LayerShape,
)
from lineahead.plugins.augmented_attention.step import step

OPSET = 23
SHAPES = {"linear": LayerShape(heads=2, kv_heads=1, head_dim=4, value_dim=4)}
SHAPE = LayerShape(heads=4, kv_heads=2, head_dim=8, value_dim=6)
PARTS = ("local", "pattern", "feature_map", "normalizer", "normalizes", "qk_norm", "local_norm")
SETTINGS_CASES = {
    **{
        name: {"window": 8, "conv_taps": min(settings.conv_taps, 6)}
        for name, settings in PRESETS.items()
        if settings.causal
    },
    "linear": {"local": "none", "pattern": "none", "conv_taps": 0},
    "window only": {"feature_map": "none", "window": 8, "conv_taps": 0},
}


def settings_of(name):
    base = PRESETS[name].as_dict() if name in PRESETS else {}
    return AttentionSettings(**{**base, **SETTINGS_CASES[name]})


def body_of(name):
    return form.Body(settings=settings_of(name), shape=SHAPES.get(name, SHAPE), scale=0.3)


def traced_cases():
    """All cases; those that have no part that is not in one before are long, for a trace takes 10 s."""
    known, found = set(), []
    for name in SETTINGS_CASES:
        settings = settings_of(name)
        parts = {(part, getattr(settings, part)) for part in PARTS}
        parts |= {("sinks", settings.sinks > 0), ("conv_taps", settings.conv_taps > 0)}
        usual = parts - known or name in SHAPES  # another test traces those anyhow
        found.append(pytest.param(name, marks=() if usual else pytest.mark.long))
        known |= parts
    return found


def random_ports(body, *, batch=2, nodes=3, accepts=2, pending=4, length=21):
    """Operands in the middle of a text; a row accepts nothing."""
    torch.manual_seed(0)
    ports = {}
    for port, sample in form._sample_ports(body).items():
        size = list(sample.shape)
        if port in ("query", "key", "value", "pending_key", "pending_value"):
            size[2] = nodes if port in ("query", "key", "value") else pending
        if len(size) > 1 and size[0] == 3:
            size[0] = batch
        ports[port] = torch.rand(size)
    ports["ancestors"] = (
        torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]]).bool().repeat(batch, 1, 1)[:, :nodes, :nodes]
    )
    ports["length"] = torch.arange(batch) + length
    ports["accept_index"] = torch.arange(accepts).repeat(batch, 1)
    ports["accept_count"] = torch.tensor([accepts] + [0] * (batch - 1))
    return ports


def one_node_model(*bodies):
    """A model with one bare node for each body, each with ports of its own."""
    inputs, outputs, nodes, functions = [], [], [], []
    for number, body in enumerate(bodies):
        overload = f"v{number}" if number else ""
        ports = [ir.Value(name=f"{number}.{name}") for name in INPUTS]
        for port, tensor in zip(ports, random_ports(body).values(), strict=True):
            port.dtype = {torch.float32: ir.DataType.FLOAT, torch.int64: ir.DataType.INT64}.get(
                tensor.dtype, ir.DataType.BOOL
            )
            port.shape = ir.Shape([None] * tensor.ndim)
        settings = {
            key: int(value) if isinstance(value, bool) else value
            for key, value in attributes(body.settings, body.scale).items()
        }
        node = ir.node(OP_TYPE, ports, settings, domain=DOMAIN, overload=overload, num_outputs=len(OUTPUTS))
        for name, value in zip(OUTPUTS, node.outputs, strict=True):
            value.name, value.dtype = f"{number}.{name}_out", ir.DataType.FLOAT
        inputs += ports
        outputs += node.outputs
        nodes.append(node)
        functions.append(form.function_body(body, opset=OPSET, overload=overload))
    graph = ir.Graph(inputs, outputs, nodes=nodes, opset_imports={"": OPSET, DOMAIN: 1}, name="test")
    model = ir.Model(graph, ir_version=10, functions=functions)
    return ir.to_proto(model).SerializeToString()


def run(model, *operands):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    feeds = {f"{i}.{name}": x.numpy() for i, ports in enumerate(operands) for name, x in ports.items()}
    used = {port.name for port in session.get_inputs()}
    return [torch.from_numpy(x) for x in session.run(None, {k: v for k, v in feeds.items() if k in used})]


def assert_same(got, want):
    for name, a, b in zip(OUTPUTS, got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_step_takes_the_ports_in_schema_order():
    parameters = inspect.signature(step).parameters
    assert tuple(parameters)[: len(INPUTS)] == INPUTS
    assert tuple(inspect.signature(form._Step.forward).parameters)[1:] == INPUTS


@pytest.mark.parametrize("name", SETTINGS_CASES)
def test_custom_operator_is_step(name):
    body = body_of(name)
    ports = random_ports(body)
    want = step(*ports.values(), settings=body.settings, scale=body.scale)
    operands = (*ports.values(), *attributes(body.settings, body.scale).values())
    got = augmented_attention(*operands)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)
    torch.library.opcheck(augmented_attention, operands, test_utils=("test_schema", "test_faketensor"))


def test_node_schema_has_every_port_and_setting():
    form.register_schema()
    form.register_schema()
    schema = onnx.defs.get_schema(OP_TYPE, 1, DOMAIN)
    assert [port.name for port in schema.inputs] == list(INPUTS)
    assert [port.name for port in schema.outputs] == list(OUTPUTS)
    assert set(schema.attributes) == {*SETTINGS, "scale"}


@pytest.mark.parametrize("name", traced_cases())
def test_function_body_is_step(name):
    body = body_of(name)
    model = one_node_model(body)
    for sizes in ({}, {"nodes": 1, "accepts": 4}, {"batch": 1, "accepts": 0, "pending": 0, "length": 0}):
        ports = random_ports(body, **sizes)
        assert_same(run(model, ports), step(*ports.values(), settings=body.settings, scale=body.scale))


def test_layers_may_differ_in_shape_and_settings():
    bodies = [body_of("augmented"), body_of("linear")]
    operands = [random_ports(body) for body in bodies]
    want = [
        output
        for body, ports in zip(bodies, operands, strict=True)
        for output in step(*ports.values(), settings=body.settings, scale=body.scale)
    ]
    got = run(one_node_model(*bodies), *operands)
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_a_function_body_is_traced_once_and_given_out_anew(monkeypatch):
    """Layers and models that agree share the trace, and a caller may change what it is given."""
    body = body_of("linear")
    first = form.function_body(body, opset=OPSET)
    before = ir.to_proto(first).SerializeToString()
    monkeypatch.setattr(form, "exported", None)
    first.graph.remove(first.graph[-1:], safe=False)
    again = form.function_body(body, opset=OPSET, overload="v1")
    assert again.overload == "v1"
    again.overload = ""
    assert ir.to_proto(again).SerializeToString() == before
