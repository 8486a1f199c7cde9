"""What judges an engine: its script in calls that fit, buffers by the call's sizes, refusals; on fakes."""

import numpy as np
import onnx_ir as ir
import pytest

from lineahead.convert.onnx.rollout import cases
from lineahead.convert.tensorrt import check
from lineahead.convert.tensorrt.graph import engine_graph, save_for_check
from lineahead.convert.tensorrt.twin import twin
from lineahead.errors import ExportError, ParityError
from lineahead.plugins.tensorrt.engine import Tensor
from lineahead.plugins.tensorrt.record import Bucket
from lineahead.runtime.artifact import read_artifact


def buckets(*sizes):
    return [Bucket(batch=batch, nodes=nodes, results=nodes) for batch, nodes in sizes]


def script():
    return cases((8,), 50)


def test_chains_come_in_parts_and_accept_the_same_tokens():
    whole = script()[0]
    parts = check.fitted(whole, buckets((1, 1), (1, 3)))
    assert {turn.tokens.shape[1] for turn in parts.turns} == {1, 2, 3}
    assert np.array_equal(*(np.hstack([turn.tokens for turn in one.turns]) for one in (whole, parts)))
    for turn in parts.turns:
        assert np.array_equal(turn.ancestors[0], np.tri(turn.tokens.shape[1], dtype=bool))
        assert turn.accepted == [[*range(turn.tokens.shape[1])]]


def test_trees_and_batches_that_do_not_fit_are_left_out():
    names = [one.name for case in script() if (one := check.fitted(case, buckets((1, 7))))]
    assert names == ["prefill and decode", "trees from 7", "trees from 8", "trees from 14"]
    assert all(check.fitted(case, buckets((2, 16))) for case in script())
    assert not any(check.fitted(case, buckets((1, 6))) for case in script()[1:])


class OneProfile:
    """An engine that tells its outputs' sizes in the first profile, as TensorRT 8.6 does, and writes ones."""

    def __init__(self, memory):
        kinds = (("past.0.state", True, (-1, 2, 4)), ("pending.0.key", True, (-1, 2, -1, 4)))
        first = (("present.0.state", False, (1, 2, 4)), ("pending_out.0.key", False, (1, 2, 1, 4)))
        ends = (("logits", False, (1, 1, 5)), ("hidden_states", False, (1, 1, 3)))
        self.tensors = {
            name: Tensor(name=name, dtype="float32", shape=shape, is_input=given)
            for name, given, shape in (*kinds, *first, *ends)
        }
        self.memory, self.written = memory, {}

    def prepare(self, profile, shapes, addresses):
        def run():
            for name, size in self.written.items():
                self.memory.bytes_at(addresses[name], size * 4).view(np.float32)[:] = 1

        return run


def test_outputs_get_room_for_the_call_not_for_the_first_profile(tensorrt_fakes):
    device = tensorrt_fakes.Device()
    engine = OneProfile(device)
    engine.written = {
        "present.0.state": 2 * 8,
        "pending_out.0.key": 2 * 2 * 3 * 4,
        "logits": 2 * 3 * 5,
        "hidden_states": 2 * 3 * 3,
    }
    names = ["input_ids", "ancestors", "output_index", "accept_index", "accept_count", "past.length"]
    names += ["past.0.state", "pending.0.key"]
    given = [np.zeros(shape, np.int64) for shape in ((2, 3), (2, 3, 3), (2, 3), (2, 0), (2,), (2,))]
    given += [np.zeros((2, 2, 4), np.float32), np.zeros((2, 2, 0, 4), np.float32)]
    outputs = ["logits", "hidden_states", "present.length", "present.0.state", "pending_out.0.key"]
    backend = check.engine_backend(engine, device, buckets((1, 1), (2, 3)), names, outputs)
    found = dict(zip(outputs, backend(given), strict=True))
    shapes = {"logits": (2, 3, 5), "hidden_states": (2, 3, 3), "present.0.state": (2, 2, 4)}
    for name, shape in (shapes | {"pending_out.0.key": (2, 2, 3, 4)}).items():
        assert found[name].shape == shape
        assert (found[name] == 1).all()
    assert not device.blocks or len(device.blocks) <= 1  # the call's own block alone may stay


def test_an_engine_that_nothing_fits_is_not_judged(monkeypatch, tmp_path):
    class Session:
        def __init__(self, *_, **__):
            pass

        def get_inputs(self):
            return []

        def get_outputs(self):
            return [Tensor(name="logits", dtype="float32", shape=(1, 1, 50), is_input=False)]

    monkeypatch.setattr("onnxruntime.InferenceSession", Session)
    monkeypatch.setattr(check, "cases", lambda *_: script()[1:])
    with pytest.raises(ExportError, match="no call of the script fits an engine of at most 1 nodes"):
        check.compare(tmp_path / "graph.onnx", None, None, buckets((1, 1)), window=8, precision="fp16")


def narrow_angles(graph):
    """Round the angles of rotary embeddings to 16 bits."""
    for node in [one for one in graph if one.op_type in ("Cos", "Sin")]:
        narrow = ir.node("Cast", [node.inputs[0]], {"to": int(ir.DataType.FLOAT16)})
        wide = ir.node("Cast", narrow.outputs, {"to": int(ir.DataType.FLOAT)})
        graph.insert_before(node, [narrow, wide])
        node.replace_input_with(0, wide.outputs[0])


@pytest.fixture
def judge(artifact, tensorrt_fakes, tmp_path, monkeypatch):
    """What is said of an engine whose angles are in float32, or in 16 bits."""
    source = read_artifact(artifact).graph("fp32")
    monkeypatch.setattr(check, "cases", lambda *_: script()[:1])

    def verdict(late, *, narrow, **given):
        model = engine_graph(source, "fp16")
        if narrow:
            narrow_angles(model.graph)
        save_for_check(model, tmp_path / "engine.onnx")
        device = tensorrt_fakes.Device()
        engine = tensorrt_fakes.Engine(tmp_path / "engine.onnx", device)
        monkeypatch.setattr(check, "LATE", late)
        return check.compare(source, engine, device, buckets((1, 16)), window=8, precision="fp16", **given)

    verdict.source = source
    return verdict


def test_angles_in_16_bits_show_at_late_positions(judge):
    late, early = judge(8192, narrow=True), judge(0, narrow=True)
    assert judge(8192, narrow=False).difference < check.BOUND["fp16"] < late.difference
    assert early.difference < check.BOUND["fp16"]
    with pytest.raises(ParityError, match=r"prefill and decode, from position 81\d\d"):
        check.require(late, "an engine")
    check.require(early, "an engine")


def test_what_is_as_hard_for_the_graph_itself_is_allowed(judge, monkeypatch, tmp_path):
    """With a bound that 16 bits alone exceed: as far as the graph is, but not as far as wrong angles are."""

    def own(*ports):
        return twin(engine_graph(judge.source, "fp16"), tmp_path / "twin.onnx", *ports)

    monkeypatch.setitem(check.BOUND, "fp16", 1e-5)
    right = judge(8192, narrow=False)
    assert right.difference > right.allowed == 1e-5
    again = judge(8192, narrow=False, twin=own)
    assert again.difference == right.difference
    assert again.allowed == pytest.approx(check.SLACK * again.difference)
    check.require(again, "an engine")
    wrong = judge(8192, narrow=True, twin=own)
    assert wrong.difference > 10 * wrong.allowed


@pytest.mark.parametrize("overflows", ["engine", "graph"])
def test_what_is_not_finite_excuses_nothing(overflows, judge, monkeypatch):
    """An engine without finite results is refused in any case; a graph without them is no measure."""
    monkeypatch.setitem(check.BOUND, "fp16", 1e-5)
    spreads = iter([np.inf, np.inf] if overflows == "engine" else [1e-3, np.inf] * 2)
    monkeypatch.setattr(check, "_furthest", lambda *_: next(spreads))
    found = judge(8192, narrow=False, twin=lambda *_: "the graph")
    assert found.allowed == 1e-5
    with pytest.raises(ParityError):
        check.require(found, "an engine")


def test_the_graph_itself_is_not_asked_where_the_engine_is_near(judge):
    def own(*ports):
        raise AssertionError

    check.require(judge(0, narrow=False, twin=own), "an engine")
