"""The engine's bench on a fake device and engine: its calls are valid, its times are those of the device."""

import pytest

from lineahead.convert.tensorrt.graph import engine_graph, save_for_check
from lineahead.convert.tensorrt.outside import take_out
from lineahead.plugins.tensorrt.record import Bucket
from lineahead.runtime.artifact import read_artifact
from lineahead.runtime.bench.tensorrt_process import StepBench, is_operator

BUCKETS = [
    Bucket(batch=1, nodes=1, results=1),
    Bucket(batch=2, nodes=5, results=5),
    Bucket(batch=1, nodes=9, results=4),
]


@pytest.fixture(scope="module", params=[False, True], ids=["weights inside", "weights outside"])
def bench(request, artifact, tensorrt_fakes, tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "graph.onnx"
    model = engine_graph(read_artifact(artifact).graph("fp32"), "fp32")
    if request.param:
        assert len(take_out(model.graph, least=1 << 10)) > 4
    save_for_check(model, path)
    device = tensorrt_fakes.Device()
    return StepBench(tensorrt_fakes.Engine(path, device), device, tensorrt_fakes.Choice(), BUCKETS)


@pytest.mark.parametrize("call", [(1, 1, 1024), (2, 5, 131072), (2, 5, 1024, 5), (1, 9, 64, 9)])
def test_a_call_is_timed_by_its_graph_and_its_layers(bench, call):
    found = bench.measure(*call, repeats=3)
    assert found["graph_ms"] == 2.0  # one launch, as the fake counts
    assert found["step_ms"] > 0
    assert (found["plugin_ms"], found["layers_ms"]) == (2.0, 5.0)
    assert list(found["slowest"]) == ["node_linear", "node_augmented_attention"]


def test_a_bucket_that_the_engine_lacks_is_refused(bench):
    with pytest.raises(StopIteration):
        bench.measure(4, 1, 1024, repeats=3)


def test_layers_of_the_plugin_are_told_from_others():
    assert is_operator("node_augmented_attention_1__5")
    assert is_operator("AugmentedAttention_12")
    assert not is_operator("node_linear_3")
