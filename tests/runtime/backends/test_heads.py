"""Draft heads on ONNX Runtime, on an artifact whose heads are random."""

import shutil

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from lineahead.errors import ArtifactError
from lineahead.runtime.backends.ort_heads import OnnxRuntimeHeads
from lineahead.runtime.generate import Generator
from lineahead.runtime.sampling import SamplingParams
from lineahead.runtime.verify import verify

HEADS, TOP, WIDTH, VOCAB = 3, 4, 32, 300


def heads_graph(path, weight):
    """log_softmax(hidden W), the best TOP of each head."""
    constants = {
        "weight": weight,
        "shape": np.array([-1, HEADS, VOCAB]),
        "top": np.array([TOP]),
    }
    nodes = [
        helper.make_node("MatMul", ["hidden_states", "weight"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["scores"]),
        helper.make_node("LogSoftmax", ["scores"], ["all"], axis=-1),
        helper.make_node("TopK", ["all", "top"], ["log_probs", "tokens"], axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "heads",
        [helper.make_tensor_value_info("hidden_states", TensorProto.FLOAT, ["B", WIDTH])],
        [
            helper.make_tensor_value_info("tokens", TensorProto.INT64, ["B", HEADS, TOP]),
            helper.make_tensor_value_info("log_probs", TensorProto.FLOAT, ["B", HEADS, TOP]),
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)]), path)


@pytest.fixture(scope="module")
def drafting(artifact, tmp_path_factory):
    """The tiny artifact with draft heads."""
    folder = tmp_path_factory.mktemp("drafting") / "tiny"
    shutil.copytree(artifact, folder)
    weight = np.random.default_rng(0).normal(size=(WIDTH, HEADS * VOCAB)).astype(np.float32)
    heads_graph(folder / "onnx" / "draft.onnx", weight)
    return folder, weight


def test_heads(drafting):
    folder, weight = drafting
    hidden = np.random.default_rng(1).normal(size=(2, WIDTH)).astype(np.float32)
    tokens, log_probs = OnnxRuntimeHeads(folder / "onnx" / "draft.onnx")(hidden)
    scores = (hidden @ weight).reshape(2, HEADS, VOCAB)
    assert (tokens == np.argsort(-scores, -1)[..., :TOP]).all()
    assert (np.diff(log_probs) <= 0).all()
    assert log_probs.dtype == np.float32


def test_text_with_heads_is_the_plain_text(drafting):
    folder, _ = drafting
    generator = Generator.load(folder, implementation="function", threads=1, drafter="medusa", draft_nodes=6)
    report = verify(generator, ["Hello", "What is it?"], tokens=40)
    assert report.identical
    assert [check.drafter for check in report.checks][3:5] == ["medusa chain", "medusa tree"]
    generator.generate(["Hello"], SamplingParams(max_tokens=20, ignore_eos=True))
    assert generator.statistics.proposed >= 6 * 15


def test_another_graph_is_refused(artifact):
    with pytest.raises(ArtifactError, match="not a draft graph"):
        OnnxRuntimeHeads(artifact / "onnx" / "verifier.onnx")
