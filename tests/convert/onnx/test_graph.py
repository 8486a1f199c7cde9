"""The traced step graph: its ports, its nodes, its size."""

import onnx
import onnx_ir as ir
import pytest
import torch

from lineahead.convert.onnx import graph as module
from lineahead.errors import ExportError
from lineahead.plugins import step_graph
from lineahead.plugins.augmented_attention.custom_op import attributes
from lineahead.plugins.augmented_attention.schema import DOMAIN, OP_TYPE


@pytest.fixture(scope="module")
def model(traced):
    return onnx.load(traced)


def test_ports_are_the_contract(model, step_model):
    settings = [layer.settings for layer in step_model.layers]
    assert [port.name for port in model.graph.input] == step_graph.input_names(settings)
    assert [port.name for port in model.graph.output] == step_graph.output_names(settings)


def test_versions_are_as_asked(model):
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": module.OPSET, DOMAIN: 1}
    assert model.ir_version == module.IR_VERSION


def test_one_bare_node_a_layer_and_one_body_for_all(model, step_model):
    nodes = [node for node in model.graph.node if node.domain == DOMAIN]
    assert [node.op_type for node in nodes] == [OP_TYPE] * len(step_model.layers)
    assert [(one.domain, one.name) for one in model.functions] == [(DOMAIN, OP_TYPE)]
    for node, layer in zip(nodes, step_model.layers, strict=True):
        got = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        want = attributes(layer.settings, layer.shape.head_dim**-0.5)
        assert set(got) == set(want)
        for name, value in want.items():
            value = value.encode() if isinstance(value, str) else value
            assert got[name] == pytest.approx(value) if isinstance(value, float) else got[name] == value


def test_weights_are_stored_once_and_by_name(model, step_model):
    stored = sum(onnx.numpy_helper.to_array(one).nbytes for one in model.graph.initializer)
    parameters = sum(p.numel() * 4 for p in step_model.parameters())
    assert stored < parameters + 4096
    names = {one.name for one in model.graph.initializer}
    assert "model.model.layers.1.mlp.down_proj.weight.T" in names


def test_nothing_of_the_exporting_machine_is_in_the_file(traced):
    content = traced.read_bytes()
    assert b"site-packages" not in content
    assert b"File " not in content
    assert b"/lineahead/" not in content


def test_large_weights_go_to_a_data_file(traced, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "EXTERNAL_BYTES", 1000)
    path = tmp_path / "big.onnx"
    module.save(ir.load(traced), path)
    assert path.with_name("big.onnx.data").stat().st_size > 30_000
    onnx.checker.check_model(str(path))


def test_an_input_without_consumer_is_refused(traced, step_model):
    model = ir.load(traced)
    settings = [layer.settings for layer in step_model.layers]
    names = step_graph.input_names(settings)
    ids = model.graph.inputs[0]
    other = ir.Value(name="other")
    model.graph.inputs.append(other)
    ir.convenience.replace_all_uses_with(ids, other)
    model.graph.inputs.pop()
    with pytest.raises(ExportError, match="'input_ids' has no consumer"):
        module._check(model, names, module.OPSET)
    with pytest.raises(ExportError, match="wrote opset 23 when asked for 17"):
        module._check(ir.load(traced), names, 17)


def test_tracing_copies_no_weight(step_model):
    model = module.trace(step_model)
    own = {p.data_ptr() for p in step_model.parameters()}
    for value in model.graph.initializers.values():
        if value.const_value.nbytes > 4096:
            assert value.const_value.numpy().__array_interface__["data"][0] in own


def test_tied_views_become_one_initializer():
    weight = torch.nn.Parameter(torch.randn(40, 32))
    table = ir.Value(name="table", const_value=ir.tensor(weight.detach().numpy()))
    view = ir.Value(name="view", const_value=ir.tensor(weight.detach().numpy().T))
    ids = ir.Value(name="ids")
    gather = ir.node("Gather", [table, ids])
    product = ir.node("MatMul", [gather.outputs[0], view])
    graph = ir.Graph([ids], product.outputs, nodes=[gather, product], initializers=[table, view], name="g")
    module.share_storage(graph)
    assert list(graph.initializers) == ["table"]
    assert [node.op_type for node in graph] == ["Transpose", "Gather", "MatMul"]
