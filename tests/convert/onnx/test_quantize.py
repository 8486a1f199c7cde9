"""Quantised step graphs: what is replaced, what is packed, what keeps 8 bits, and exactness."""

import onnx
import onnx_ir as ir
import pytest

from lineahead.convert.onnx import parity
from lineahead.convert.onnx.quantize import quantize_file, stored_weights


@pytest.fixture(scope="module", params=[8, 4])
def quantized(request, traced, tmp_path_factory):
    path = tmp_path_factory.mktemp("quantized") / f"verifier_int{request.param}.onnx"
    quantize_file(traced, path, bits=request.param)
    return request.param, path


def test_every_product_is_packed_and_the_table_shared(quantized):
    bits, path = quantized
    onnx.checker.check_model(str(path))
    model = onnx.load(path)
    nodes = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    assert len(nodes) == 4 * 2 + 1
    weights = {tensor.name for tensor in model.graph.initializer}
    left = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm")]
    assert not any(weights & {*node.input} for node in left)  # older transformers' RoPE is a product, too
    assert len(left) <= 1
    (table,) = [node for node in model.graph.node if node.op_type == "GatherBlockQuantized"]
    assert table.input[2] == nodes[-1].input[2]
    widths = [{a.name: a.i for a in node.attribute}["bits"] for node in nodes]
    assert widths == ([8, 4, 4, 8] * 2 + [8] if bits == 4 else [8] * 9)


def test_residuals_and_norms_are_fused(quantized):
    model = onnx.load(quantized[1])
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("SkipSimplifiedLayerNormalization") == 4
    assert kinds.count("RMSNormalization") == 1


def test_ports_did_not_change(quantized, traced):
    before, after = onnx.load(traced).graph, onnx.load(quantized[1]).graph
    assert [port.name for port in before.input] == [port.name for port in after.input]
    assert [port.name for port in before.output] == [port.name for port in after.output]


def test_the_record_names_every_matrix(quantized, step_model):
    stored = dict(stored_weights(ir.load(quantized[1])))
    matrices = {
        name for name, value in step_model.named_parameters() if value.ndim == 2 and ".lineahead." not in name
    }
    assert {name.removesuffix(".T") for name in stored} == matrices


def test_file_is_exactly_the_rounded_model(quantized, tiny_artifact):
    bits, path = quantized
    result = parity.compare(tiny_artifact, path, precision=f"int{bits}")
    assert result.largest < 1e-5
    assert 0 < result.rounding < (0.2 if bits == 4 else 0.02)
    assert result.kl < 0.05
    assert not list(path.parent.glob("*.exact*"))
