"""A graph without its weights, to be filled on another machine."""

import json

import numpy as np
import onnx
import onnx_ir as ir
from click.testing import CliRunner

from lineahead.convert.tensorrt import outside
from lineahead.convert.tensorrt.build import profile_shapes
from lineahead.convert.tensorrt.skeleton import hollow, main, skeleton
from lineahead.convert.tensorrt.synthetic import fill_weights
from lineahead.plugins.augmented_attention.schema import DOMAIN, OP_TYPE
from lineahead.plugins.step_graph import WEIGHT
from lineahead.plugins.tensorrt.record import Bucket

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "tie_word_embeddings": False,
}
PRODUCTS = 2 * (64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 96) + 64 * 128


def test_a_skeleton_is_small_and_takes_random_weights(tmp_path):
    source, graph = tmp_path / "config.json", tmp_path / "g.onnx"
    source.write_text(json.dumps(CONFIG))
    result = CliRunner().invoke(main, [str(source), str(graph), "--precision", "fp16", "--fuse"])
    assert result.exit_code == 0, result.output
    assert "fused 5 norms, 2 rotary embeddings, 2 gated units" in result.output
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["config.json", "g.onnx"]
    bare = onnx.load(str(graph), load_external_data=False)
    assert [(node.domain, node.op_type) for node in bare.graph.node].count((DOMAIN, OP_TYPE)) == 2
    assert not bare.functions
    told = [
        {one.name: one.s for one in node.attribute}["precision"]
        for node in bare.graph.node
        if node.domain == DOMAIN
    ]
    assert told == [b"fp16"] * (2 + 10)  # TensorRT 8.6 would choose a type by itself
    outside = [one for one in bare.graph.initializer if one.external_data]
    assert sum(one.data_type == onnx.TensorProto.FLOAT16 for one in outside) >= 2 * 4 + 2
    filled = fill_weights(graph)
    assert filled > 2 * (PRODUCTS + 128 * 64)
    whole = onnx.load(str(graph))
    assert all(
        one.raw_data.strip(b"\0") for one in whole.graph.initializer if one.name in {x.name for x in outside}
    )


def test_places_of_weights_do_not_overlap():
    model = skeleton(CONFIG, "augmented", "fp32")
    size = hollow(model, "w.data")
    places = sorted(
        (tensor.offset, tensor.length)
        for value in model.graph.initializers.values()
        if isinstance(tensor := value.const_value, ir.ExternalTensor)
    )
    assert len(places) > 2 * 4
    ends = [offset + length for offset, length in places]
    assert all(end <= start for end, (start, _) in zip(ends, places[1:], strict=False))
    assert ends[-1] <= size


def test_weights_that_are_inputs_leave_nothing_to_fill(tmp_path, monkeypatch):
    monkeypatch.setattr(outside.take_out, "__kwdefaults__", {"least": 64 * 64 * 2})
    source, graph = tmp_path / "config.json", tmp_path / "g.onnx"
    source.write_text(json.dumps(CONFIG))
    result = CliRunner().invoke(main, [str(source), str(graph), "--precision", "fp16", "--fuse", "--outside"])
    assert "10 weights are inputs" in result.output
    bare = onnx.load(str(graph), load_external_data=False)
    given = {one.name: one.type.tensor_type for one in bare.graph.input if one.name.startswith(WEIGHT)}
    assert len(given) == 2 * 4 + 2
    assert {one.elem_type for one in given.values()} == {onnx.TensorProto.FLOAT16}
    numbers = sum(np.prod([axis.dim_value for axis in one.shape.dim]) for one in given.values())
    assert numbers == PRODUCTS + 128 * 64
    for name, kind in given.items():
        shape = tuple(axis.dim_value for axis in kind.shape.dim)
        assert profile_shapes(name, shape, Bucket(batch=1, nodes=4, results=4), (1, 4)) == (shape,) * 3
