"""Random weights for a graph that travelled without its own."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from lineahead.convert.tensorrt.synthetic import fill_weights
from lineahead.errors import ArtifactError


def hollow(folder, *arrays):
    """A graph whose weights stand in a file that is missing."""
    weights = [numpy_helper.from_array(array, f"w{i}") for i, array in enumerate(arrays)]
    small = numpy_helper.from_array(np.array([3], np.int64), "small")
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    node = helper.make_node("Identity", ["w0"], ["y"])
    model = helper.make_model(helper.make_graph([node], "g", [], [output], [*weights, small]))
    external_data_helper.convert_model_to_external_data(model, location="g.data", size_threshold=64)
    onnx.save(model, folder / "g.onnx")
    (folder / "g.data").unlink()
    return folder / "g.onnx"


def test_every_weight_is_random_in_its_own_type(tmp_path):
    graph = hollow(tmp_path, np.zeros((30, 40), np.float16), np.zeros((50, 7), np.float32))
    assert fill_weights(graph, seed=1) == 30 * 40 * 2 + 50 * 7 * 4
    found = {one.name: numpy_helper.to_array(one) for one in onnx.load(graph).graph.initializer}
    assert [found[name].dtype for name in ("w0", "w1", "small")] == [np.float16, np.float32, np.int64]
    for name in ("w0", "w1"):
        assert 0.015 < found[name].astype(np.float64).std() < 0.025
    assert found["small"].tolist() == [3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g.data", "g.onnx"]


def test_external_integers_are_refused_and_nothing_is_left(tmp_path):
    with pytest.raises(ArtifactError, match="w0 is external and no float"):
        fill_weights(hollow(tmp_path, np.zeros(100, np.int64)))
    assert [path.name for path in tmp_path.iterdir()] == ["g.onnx"]


@pytest.mark.parametrize("equal", [False, True])
def test_weights_of_one_shape_differ_unless_they_are_to_be_equal(equal, tmp_path):
    graph = hollow(tmp_path, *[np.zeros((30, 40), np.float16)] * 2)
    fill_weights(graph, equal=equal)
    first, second = (numpy_helper.to_array(one) for one in onnx.load(graph).graph.initializer[:2])
    assert np.array_equal(first, second) == equal
