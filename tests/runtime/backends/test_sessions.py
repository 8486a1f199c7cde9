"""Every backend, the same calls: function bodies, the native kernel, eager torch."""

import numpy as np
import pytest

from lineahead.errors import ArtifactError, BackendError, InputError
from lineahead.plugins.augmented_attention import native
from lineahead.runtime.artifact import read_artifact
from lineahead.runtime.backends import ort_library
from lineahead.runtime.backends.onnxruntime import OnnxRuntimeSession
from lineahead.runtime.generate import open_session
from lineahead.runtime.session import StepInput
from lineahead.runtime.tree import ancestors

KINDS = {
    "function": {"implementation": "function"},
    "native": {"implementation": "native"},
    "eager": {"backend": "eager"},
}


@pytest.fixture(scope="module", params=["artifact", "hybrid_artifact"])
def sessions(request):
    """One session of each kind that this machine can run."""
    found = read_artifact(request.getfixturevalue(request.param))
    kinds = [kind for kind in KINDS if kind != "native" or native.status().reason is None]
    return {kind: open_session(found, threads=1, **KINDS[kind]) for kind in kinds}


@pytest.fixture(params=KINDS)
def session(request, sessions):
    if request.param not in sessions:
        pytest.skip(native.status().reason)
    sessions[request.param].reset(0)
    return sessions[request.param]


def random_tree(random, nodes):
    return (-1, *(int(random.integers(0, i)) for i in range(1, nodes)))


class Script:
    """Random trees and random acceptance, the same for everyone."""

    def __init__(self, batch, seed=0):
        self.random, self.batch = np.random.default_rng(seed), batch
        self.paths = [[] for _ in range(batch)]
        self.texts = [[] for _ in range(batch)]

    def call(self, nodes):
        """The next call, for a number of nodes; the previous call's accepted paths go along."""
        random, batch = self.random, self.batch
        ids = random.integers(2, 258, (batch, nodes))
        parents = [random_tree(random, nodes) for _ in range(batch)]
        width = max(map(len, self.paths), default=0)
        accept = np.zeros((batch, width), np.int64)
        for b, path in enumerate(self.paths):
            accept[b, : len(path)] = path
        inputs = StepInput(
            input_ids=ids,
            ancestors=np.stack([ancestors(one) for one in parents]),
            output_index=np.tile(np.arange(nodes), (batch, 1)),
            accept_index=accept,
            accept_count=np.array([len(path) for path in self.paths], np.int64),
        )
        self.paths = []
        for b in range(batch):
            node, path = int(random.integers(-1, nodes)), []
            while node >= 0:
                path.insert(0, node)
                node = parents[b][node]
            self.paths.append(path)
            self.texts[b] += [int(ids[b, one]) for one in path]
        return inputs


def test_all_backends_agree_on_random_trees(sessions):
    script = Script(3)
    for one in sessions.values():
        one.reset(3)
    for nodes in (7, 1, 1, 20, 3, 70, 1, 5, 5, 2, 16, 4, 9, 1):
        inputs = script.call(nodes)
        outputs = {}
        for kind, one in sessions.items():
            found = one.step(inputs)
            outputs[kind] = found.logits.copy(), found.hidden.copy()
        for kind, (logits, hidden) in outputs.items():
            np.testing.assert_allclose(logits, outputs["eager"][0], atol=2e-4, rtol=1e-4, err_msg=kind)
            np.testing.assert_allclose(hidden, outputs["eager"][1], atol=2e-4, rtol=1e-4, err_msg=kind)
            assert (sessions[kind].length == sessions["eager"].length).all()
    assert min(sessions["eager"].length) > 16


def finish(session, script):
    """Commit what is accepted, and score one more token."""
    width = max(map(len, script.paths))
    accept = np.array([path + [0] * (width - len(path)) for path in script.paths], np.int64)
    session.flush(accept, np.array([len(path) for path in script.paths], np.int64))


def one_token(session):
    batch = len(session.length)
    inputs = StepInput(
        input_ids=np.full((batch, 1), 9),
        ancestors=np.ones((batch, 1, 1), bool),
        output_index=np.zeros((batch, 1), np.int64),
        accept_index=np.zeros((batch, 0), np.int64),
        accept_count=np.zeros(batch, np.int64),
    )
    return session.step(inputs).logits[:, 0].copy()


def test_state_after_trees_equals_the_state_of_the_accepted_text(session):
    script = Script(2, seed=3)
    session.reset(2)
    for nodes in (9, 1, 30, 4, 12, 6, 1, 8):
        session.step(script.call(nodes))
    finish(session, script)
    state = session.read_state()
    assert state["past.length"].tolist() == [len(text) for text in script.texts]
    for b, text in enumerate(script.texts):
        session.reset(1)
        session.step(chain_input(text))
        session.flush(np.arange(len(text))[None], np.array([len(text)]))
        for name, alone in session.read_state().items():
            found = state[name][b : b + 1]
            if name.endswith((".key", ".value")):  # caches end with the longest row's text
                assert alone.shape[2] == len(text)
                assert not found[:, :, len(text) :].any()
                found = found[:, :, : len(text)]
            np.testing.assert_allclose(found, alone, atol=1e-4, rtol=1e-4, err_msg=name)


def chain_input(text, batch=1, accepted=0):
    nodes = len(text)
    return StepInput(
        input_ids=np.array([text] * batch),
        ancestors=np.tri(nodes, dtype=bool)[None].repeat(batch, 0),
        output_index=np.array([[nodes - 1]] * batch),
        accept_index=np.arange(accepted)[None].repeat(batch, 0),
        accept_count=np.array([accepted] * batch),
    )


def test_fork_selects_duplicates_drops_and_adds(session):
    script = Script(3, seed=1)
    session.reset(3)
    for nodes in (20, 5, 9):
        session.step(script.call(nodes))
    before = session.length.copy()
    session.fork([2, -1, 0, 2])
    assert session.length.tolist() == [before[2], 0, before[0], before[2]]
    old = script.paths
    script.paths = [old[2], [], old[0], old[2]]
    finish(session, script)
    logits = one_token(session)
    np.testing.assert_allclose(logits[0], logits[3], atol=1e-5)
    session.fork([1])
    fresh = one_token(session)
    session.reset(1)
    np.testing.assert_allclose(fresh, one_token(session), atol=1e-5)
    np.testing.assert_allclose(fresh[0], logits[1], atol=1e-4)
    session.fork([])
    assert len(session.length) == 0
    session.fork([-1, -1])
    np.testing.assert_allclose(one_token(session)[1], fresh[0], atol=1e-4)


def test_caches_grow_and_nothing_else_does(session):
    session.reset(2)
    session.step(chain_input([5, 6, 7], batch=2))
    session.flush(np.tile(np.arange(3), (2, 1)), np.array([3, 3]))
    short = session.read_state()
    text = np.random.default_rng(0).integers(2, 258, 700).tolist()
    session.reset(2)
    accepted = 0
    for start in range(0, 700, 100):
        session.step(chain_input(text[start : start + 100], batch=2, accepted=accepted))
        accepted = 100
    session.flush(np.tile(np.arange(100), (2, 1)), np.array([100, 100]))
    grown = {name for name, array in session.read_state().items() if array.shape != short[name].shape}
    assert all(name.endswith((".key", ".value")) for name in grown)
    assert {session.read_state()[name].shape[2] for name in grown} <= {700}
    after = one_token(session)
    session.reset(1)
    session.step(chain_input(text))
    session.flush(np.arange(700)[None], np.array([700]))
    np.testing.assert_allclose(after[0], one_token(session)[0], atol=3e-4, rtol=1e-4)


def test_states_move_between_backends(sessions, tmp_path):
    expected = None
    for kind, source in sessions.items():
        script = Script(2, seed=5)
        source.reset(2)
        for nodes in (20, 7, 3):
            source.step(script.call(nodes))
        finish(source, script)
        source.save_state(tmp_path / kind, tokens=script.texts)
        for other, target in sessions.items():
            target.reset(5)
            assert target.load_state(tmp_path / kind) == script.texts
            logits = one_token(target)
            expected = logits if expected is None else expected
            np.testing.assert_allclose(logits, expected, atol=3e-4, rtol=1e-4, err_msg=f"{kind} -> {other}")


def test_states_that_do_not_fit_are_refused(session):
    session.reset(1)
    state = session.read_state()
    name = next(one for one in state if "window_key" in one)
    for changed in (
        {key: array for key, array in state.items() if key != name},
        {**state, "past.9.state": state[name]},
        {**state, name: state[name][:, :, :3]},
    ):
        with pytest.raises(ArtifactError, match=r"window_key|past\.9"):
            session.write_state(changed)


def test_shapes_that_do_not_belong_together_are_refused(session):
    session.reset(2)
    good = Script(2).call(3)
    for change, message in (
        ({"input_ids": good.input_ids[:1]}, "input_ids"),
        ({"ancestors": good.ancestors[:, :2]}, "ancestors"),
        ({"accept_count": good.accept_count[:1]}, "accept_count"),
        ({"accept_index": np.zeros((2, 1), np.int64)}, "no rows|there was none"),
    ):
        inputs = StepInput(**{**{name: getattr(good, name) for name in good.__dataclass_fields__}, **change})
        with pytest.raises(InputError, match=message):
            session.step(inputs)
    session.step(good)


def test_an_unknown_token_is_an_error_not_a_crash(session):
    session.reset(1)
    with pytest.raises(BackendError, match="step failed"):
        session.step(chain_input([5, 10_000]))


def test_results_are_reused_buffers_and_inputs_are_left_alone(session):
    session.reset(1)
    inputs = chain_input([5, 6, 7])
    copies = {name: getattr(inputs, name).copy() for name in inputs.__dataclass_fields__}
    session.step(inputs)
    assert all((getattr(inputs, name) == copy).all() for name, copy in copies.items())


def test_a_graph_that_is_no_step_graph_is_refused(tmp_path):
    from onnx import TensorProto, helper, save

    value = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["B"])
    other = helper.make_tensor_value_info("logits", TensorProto.INT64, ["B"])
    graph = helper.make_graph(
        [helper.make_node("Identity", ["input_ids"], ["logits"])], "g", [value], [other]
    )
    opsets = [helper.make_opsetid("", 21)]
    save(helper.make_model(graph, ir_version=10, opset_imports=opsets), tmp_path / "a.onnx")
    with pytest.raises(ArtifactError, match="not a step graph: it has no ancestors"):
        OnnxRuntimeSession(tmp_path / "a.onnx", identity=lambda: "")
    (tmp_path / "b.onnx").write_bytes((tmp_path / "a.onnx").read_bytes()[:40])
    with pytest.raises(ArtifactError, match=r"b\.onnx: damaged"):
        OnnxRuntimeSession(tmp_path / "b.onnx", identity=lambda: "")
    with pytest.raises(ArtifactError, match="no such graph"):
        OnnxRuntimeSession(tmp_path / "c.onnx", identity=lambda: "")


def test_a_provider_that_is_not_there_is_an_error(artifact):
    graph = read_artifact(artifact).graph("fp32")
    if "CUDAExecutionProvider" not in ort_library.library().get_available_providers():
        with pytest.raises(BackendError, match="no CUDAExecutionProvider"):
            OnnxRuntimeSession(graph, identity=lambda: "", provider="cuda")
    with pytest.raises(BackendError, match="unknown provider"):
        OnnxRuntimeSession(graph, identity=lambda: "", provider="abacus")
    with pytest.raises(BackendError, match="CPU only"):
        OnnxRuntimeSession(graph, identity=lambda: "", provider="cuda", implementation="native")


def test_two_flavours_of_onnx_runtime_are_an_error(monkeypatch):
    monkeypatch.setattr(ort_library.importlib.metadata, "version", lambda name: "1.0")
    with pytest.raises(BackendError, match="overwrite each other") as error:
        ort_library.ort_flavour()
    assert "pip uninstall" in error.value.hint

    def absent(name):
        raise ort_library.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(ort_library.importlib.metadata, "version", absent)
    with pytest.raises(BackendError, match="not installed"):
        ort_library.ort_flavour()


def test_the_implementation_is_reported(sessions):
    assert {kind: one.info.implementation for kind, one in sessions.items()} == {
        kind: kind for kind in sessions
    }
    assert all(one.info.threads == 1 for one in sessions.values())
