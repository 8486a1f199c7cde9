"""What TensorRT's builder is told, on stand-ins of its objects."""

import contextlib
import threading
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from lineahead.convert.tensorrt import build as build_module
from lineahead.convert.tensorrt.build import BuildRequest, _configure, _progress, wide_nodes
from lineahead.convert.tensorrt.graph import lower_for_engine, save_for_engine
from lineahead.plugins.tensorrt.record import Bucket

NORM = ["Add", "Div", "Mul", "ReduceMean", "Sqrt"]


class Enumeration:
    """Members are their names."""

    def __getattr__(self, name):
        return name


TRT = SimpleNamespace(
    __version__="8.6.1",
    float32="float32",
    MemoryPoolType=Enumeration(),
    PreviewFeature=Enumeration(),
    ProfilingVerbosity=Enumeration(),
    BuilderFlag=Enumeration(),
    LayerType=Enumeration(),
)


class Config:
    def __init__(self):
        self.flags = set()

    set_flag = lambda self, flag: self.flags.add(flag)  # noqa: E731
    clear_flag = lambda self, flag: self.flags.discard(flag)  # noqa: E731

    def __getattr__(self, name):
        return lambda *arguments: None


class Layer:
    """A layer of one output."""

    def __init__(self, name, kind="ELEMENTWISE"):
        self.name, self.type, self.num_outputs, self.precision, self.output = name, kind, 1, None, None

    def set_output_type(self, place, dtype):
        self.output = dtype


@pytest.fixture
def graph(tmp_path):
    """Two norms and a product, lowered to fp16."""
    weights = {"w": np.ones(8, np.float32), "v": np.ones(8, np.float32), "m": np.ones((8, 8), np.float32)}
    nodes = [
        helper.make_node("RMSNormalization", ["x.0", "w"], ["a"], axis=-1),
        helper.make_node("MatMul", ["a", "m"], ["b"]),
        helper.make_node("RMSNormalization", ["b", "v"], ["y"], axis=-1),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 8]) for name in ("x.0", "y")]
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "g", ports[:1], ports[1:], initializers),
        opset_imports=[helper.make_opsetid("", 23)],
    )
    lowered = ir.serde.deserialize_model(model)
    lower_for_engine(lowered, "fp16")
    save_for_engine(lowered, tmp_path / "g.onnx")
    return tmp_path / "g.onnx"


def request(graph, precision):
    bucket = Bucket(batch=1, nodes=1, results=1)
    return BuildRequest(
        graph=graph, precision=precision, buckets=[bucket], rows=(1, 1), cache=graph.with_name("c")
    )


def configured(graph, precision):
    names = wide_nodes(graph)
    layers = [Layer(name) for name in sorted(names)] + [Layer("other"), Layer(min(names), "CONSTANT")]
    network, config = SimpleNamespace(num_layers=len(layers), get_layer=layers.__getitem__), Config()
    _configure(TRT, config, network, request(graph, precision))
    return layers, config


def test_the_five_nodes_of_every_norm_are_wide(graph):
    kinds = {node.name: node.op_type for node in onnx.load(graph, load_external_data=False).graph.node}
    assert sorted(kinds[name] for name in wide_nodes(graph)) == sorted(NORM * 2)


def test_fp16_holds_norms_alone_at_float32(graph):
    *norms, other, constant = configured(graph, "fp16")[0]
    assert len(norms) == 10
    assert {(one.precision, one.output) for one in norms} == {("float32", "float32")}
    assert {(one.precision, one.output) for one in (other, constant)} == {(None, None)}
    assert configured(graph, "fp16")[1].flags == {"FP16", "PREFER_PRECISION_CONSTRAINTS"}


def test_fp32_holds_nothing(graph):
    layers, config = configured(graph, "fp32")
    assert {one.precision for one in layers} == {None}
    assert config.flags == set()


def test_a_long_build_that_tells_nothing_is_said_to_go_on(monkeypatch):
    monkeypatch.setattr(build_module, "BEAT", 0.02)
    said, twice = [], threading.Event()

    def report(text):
        said.append(text)
        if len(said) == 2:
            twice.set()

    threads = threading.active_count()
    with contextlib.suppress(KeyError), _progress(SimpleNamespace(), None, report):
        assert twice.wait(10)
        raise KeyError
    assert said[0].startswith("TensorRT: still building, ")
    assert threading.active_count() == threads
