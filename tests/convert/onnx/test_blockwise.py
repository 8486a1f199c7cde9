"""Blockwise quantisation: what the integers stand for, and that ONNX Runtime's kernels agree."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from lineahead.convert.onnx import blockwise
from lineahead.convert.onnx.blockwise import quantize_blocks


@pytest.fixture
def weight():
    return np.random.default_rng(0).standard_normal((24, 96)).astype(np.float32)


@pytest.mark.parametrize(("bits", "bound"), [(8, 0.006), (4, 0.1)])
def test_rounding_is_small(weight, bits, bound):
    rounded = quantize_blocks(weight, bits=bits, block=32).dequantized()
    assert np.linalg.norm(rounded - weight) / np.linalg.norm(weight) < bound


def test_a_searched_range_beats_the_full_one(weight, monkeypatch):
    searched = np.square(quantize_blocks(weight, bits=4, block=32).dequantized() - weight).sum()
    monkeypatch.setattr(blockwise, "SHRINKS", (1.0,))
    assert searched < np.square(quantize_blocks(weight, bits=4, block=32).dequantized() - weight).sum()


@pytest.mark.parametrize("bits", [4, 8])
def test_values_on_a_grid_survive(bits):
    steps = np.random.default_rng(0).integers(-5, 3, (8, 64))
    steps[:, ::32], steps[:, 1::32] = -5, 2
    weight = (steps * 0.25).astype(np.float32)
    if bits == 4:
        weight = np.where(steps == -5, 0.25 * -10, weight).astype(np.float32)
        weight[:, 1::32] = 0.25 * 5
    np.testing.assert_allclose(quantize_blocks(weight, bits=bits, block=32).dequantized(), weight, atol=6e-3)


@pytest.mark.parametrize("bits", [4, 8])
def test_zeros_stay_zero_and_tiny_rows_finite(bits):
    weight = np.zeros((3, 64), np.float32)
    weight[1] = 1e-30
    rounded = quantize_blocks(weight, bits=bits, block=32).dequantized()
    assert (rounded[0] == 0).all()
    assert np.isfinite(rounded).all()


def test_chunks_change_nothing(weight, monkeypatch):
    whole = quantize_blocks(weight, bits=4, block=32)
    monkeypatch.setattr(blockwise, "CHUNK_ROWS", 5)
    parts = quantize_blocks(weight, bits=4, block=32)
    assert np.array_equal(whole.codes, parts.codes)
    assert np.array_equal(whole.zeros, parts.zeros)


@pytest.mark.parametrize("columns", [96, 80])
@pytest.mark.parametrize("bits", [4, 8])
def test_onnxruntime_multiplies_by_the_same_matrix(bits, columns):
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((24, columns)).astype(np.float32)
    x = rng.standard_normal((5, columns)).astype(np.float32)
    blocks = quantize_blocks(weight, bits=bits, block=32)
    lhs = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(x.shape))
    parts = [
        ir.Value(name=name, const_value=ir.tensor(getattr(blocks, name), name=name))
        for name in ("codes", "scales", "zeros")
    ]
    settings = {"K": columns, "N": 24, "bits": bits, "block_size": 32, "accuracy_level": 1}
    node = ir.node("MatMulNBits", [lhs, *parts], settings, domain="com.microsoft")
    node.outputs[0].name, node.outputs[0].dtype = "y", ir.DataType.FLOAT
    graph = ir.Graph(
        [lhs],
        node.outputs,
        nodes=[node],
        initializers=parts,
        opset_imports={"": 21, "com.microsoft": 1},
        name="g",
    )
    proto = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    session = onnxruntime.InferenceSession(proto, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(
        session.run(None, {"x": x})[0], x @ blocks.dequantized().T, rtol=1e-4, atol=1e-4
    )
