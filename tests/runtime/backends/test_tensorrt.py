"""The TensorRT session's own logic, on a fake device and a fake engine: padding, state, graphs, results."""

from dataclasses import replace

import numpy as np
import pytest

from lineahead.convert.tensorrt.graph import engine_graph, save_for_check
from lineahead.errors import ArtifactError, BackendError, InputError
from lineahead.plugins.tensorrt.record import Bucket
from lineahead.runtime.artifact import read_artifact
from lineahead.runtime.backends.tensorrt import TensorRTSession, is_chain
from lineahead.runtime.backends.trt_steps import Served
from lineahead.runtime.generate import Generator, open_session
from lineahead.runtime.sampling import SamplingParams
from lineahead.runtime.session import StepInput
from lineahead.runtime.tokenizer import Tokenizer
from lineahead.runtime.tree import Tree, ancestors

BUCKETS = tuple(
    Bucket(batch=batch, nodes=nodes, results=min(nodes, 64)) for batch in (1, 4) for nodes in (1, 8, 32, 80)
)
CHAINS = tuple(Bucket(batch=batch, nodes=160, results=64) for batch in (1, 4))


@pytest.fixture(scope="module")
def opened(artifact, tensorrt_fakes, tmp_path_factory):
    """Sessions by precision, made when first asked for."""
    found, made, folder = read_artifact(artifact), {}, tmp_path_factory.mktemp("lowered")

    def open_(precision):
        if precision not in made:
            path = folder / f"{precision}.onnx"
            save_for_check(engine_graph(found.graph("fp32"), precision), path)
            device = tensorrt_fakes.Device()
            engine = tensorrt_fakes.Engine(path, device)
            made[precision] = TensorRTSession(
                [Served(engine=engine, buckets=BUCKETS), Served(engine=engine, buckets=CHAINS, chain=True)],
                device,
                identity=found.identity,
                choice=tensorrt_fakes.Choice(),
            )
        return made[precision]

    return open_


@pytest.fixture
def session(opened):
    return opened("fp32")


@pytest.fixture(scope="module")
def reference(artifact):
    return open_session(read_artifact(artifact), threads=1, implementation="function")


BOUND = {"fp32": 3e-4, "fp16": 0.2}  # measured: 2e-5 and 0.07 where logits reach 9


def call(random, batch, nodes, paths):
    """Random trees; `paths` were accepted in the call before."""
    parents = [(-1, *(int(random.integers(0, i)) for i in range(1, nodes))) for _ in range(batch)]
    accept = np.zeros((batch, max(map(len, paths), default=0)), np.int64)
    for b, path in enumerate(paths):
        accept[b, : len(path)] = path
    inputs = StepInput(
        input_ids=random.integers(2, 258, (batch, nodes)),
        ancestors=np.stack([ancestors(one) for one in parents]),
        output_index=np.tile(np.arange(min(nodes, 40)), (batch, 1)),
        accept_index=accept,
        accept_count=np.array([len(path) for path in paths], np.int64),
    )
    chosen = []
    for tree in parents:
        node, path = int(random.integers(-1, nodes)), []
        while node >= 0:
            path.insert(0, node)
            node = tree[node]
        chosen.append(path)
    return inputs, chosen


@pytest.mark.parametrize(("batch", "precision"), [(1, "fp32"), (3, "fp32"), (3, "fp16")])
def test_trees_padded_to_buckets_score_as_in_onnx_runtime(opened, reference, batch, precision):
    session, bound = opened(precision), BOUND[precision]
    random, paths = np.random.default_rng(batch), [[]] * batch
    session.reset(batch), reference.reset(batch)
    for nodes in (7, 1, 1, 20, 70, 1, 5, 1, 1):
        inputs, chosen = call(random, batch, nodes, paths)
        expected, found = reference.step(inputs), session.step(inputs)
        np.testing.assert_allclose(found.logits, expected.logits, atol=bound, rtol=1e-4)
        np.testing.assert_allclose(found.hidden[:], expected.hidden, atol=bound, rtol=1e-4)
        for b in range(batch):
            best = found.argmax(b, 0)
            assert found.logits[b, 0, best] == found.logits[b, 0].max()
            np.testing.assert_array_equal(found.scores(b, 0), found.logits[b, 0])
            np.testing.assert_array_equal(found.hidden[b, 0], found.hidden[:][b, 0])
        paths = chosen
        assert (session.length == reference.length).all()


def test_a_step_is_one_graph_launch_once_its_sizes_were_seen(session):
    random = np.random.default_rng(0)
    session.reset(1)
    paths = [[]]
    for _ in range(4):
        inputs, paths = call(random, 1, 1, paths)
        session.step(inputs)
    before, made = session._device.launches, len(session._steps)
    for _ in range(6):
        inputs, paths = call(random, 1, 1, paths)
        session.step(inputs)
    assert session._device.launches == before + 6
    assert len(session._steps) == made


def test_fork_moves_rows_between_buckets_and_within_one(session, reference):
    random, paths = np.random.default_rng(2), [[]] * 3
    session.reset(3), reference.reset(3)
    for nodes in (20, 5, 9):
        inputs, paths = call(random, 3, nodes, paths)
        session.step(inputs), reference.step(inputs)
    for rows in ([2, -1, 0, 2], [3, 1], [1], [-1, 0], [0]):
        session.fork(rows), reference.fork(rows)
        paths = [paths[row] if row >= 0 else [] for row in rows]
        inputs, paths = call(random, len(rows), 3, paths)
        expected, found = reference.step(inputs), session.step(inputs)
        np.testing.assert_allclose(
            found.logits, expected.logits, atol=BOUND["fp32"], rtol=1e-4, err_msg=str(rows)
        )


def test_states_move_to_and_from_other_backends(session, reference, tmp_path):
    random, paths = np.random.default_rng(3), [[]] * 2
    session.reset(2)
    for nodes in (20, 7):
        inputs, paths = call(random, 2, nodes, paths)
        session.step(inputs)
    accept = np.zeros((2, max(map(len, paths))), np.int64)
    for b, path in enumerate(paths):
        accept[b, : len(path)] = path
    session.flush(accept, np.array([len(path) for path in paths]))
    session.save_state(tmp_path / "state")
    after, _ = call(random, 2, 4, [[], []])
    expected = session.step(after).logits
    reference.load_state(tmp_path / "state")
    np.testing.assert_allclose(reference.step(after).logits, expected, atol=BOUND["fp32"], rtol=1e-4)
    reference.load_state(tmp_path / "state")
    reference.save_state(tmp_path / "back")
    session.reset(1)
    session.load_state(tmp_path / "back")
    np.testing.assert_array_equal(session.step(after).logits, expected)
    state = session.read_state()
    name = next(one for one in state if "window_key" in one)
    with pytest.raises(ArtifactError, match="window_key"):
        session.write_state({**state, name: state[name][:, :, :3]})


def test_speculative_text_is_the_plain_text(session, artifact):
    found = read_artifact(artifact)
    generator = Generator(found, session, Tokenizer(found.folder))
    params = SamplingParams(max_tokens=24, ignore_eos=True)
    prompts = ["abcabcabcabc", "hello hello hello", "x"]
    prompts = [generator.encode(one) for one in prompts]
    plain = [one.tokens for one in generator.generate(prompts, params)]
    texts = [[*prompt, *tokens] for prompt, tokens in zip(prompts, plain, strict=True)]
    drafted = generator.generate(prompts, params, drafter=Oracle(texts))
    assert [one.tokens for one in drafted] == plain
    assert generator.statistics.accepted > 30


class Oracle:
    """Proposes what the text will be, now and then wrongly, beside a branch that is wrong."""

    name, max_nodes = "oracle", 6

    def __init__(self, texts):
        self.texts = texts

    def propose(self, rows):
        trees = []
        for row in rows:
            done, text = len(row.tokens), self.texts[row.request]
            count = min(3, row.nodes // 2, row.depth, len(text) - done)
            right = [(text[done + i] + (done % 5 == 0 and i == 1)) % 258 for i in range(count)]
            parents = (-1, *range(count), *([0] if count else []))
            trees.append(Tree(tokens=(row.tokens[-1], *right, *([7] if count else [])), parents=parents))
        return trees

    def forget(self, requests):
        pass


def test_results_are_gone_after_the_next_step(session):
    random = np.random.default_rng(4)
    session.reset(1)
    first, _ = call(random, 1, 2, [[]])
    output = session.step(first)
    session.step(call(random, 1, 2, [[]])[0])
    with pytest.raises(BackendError, match="after the next step"):
        _ = output.logits


def test_what_does_not_fit_is_refused(session):
    session.reset(1)
    with pytest.raises(InputError, match=r"300 nodes.*engine has"):
        session.step(call(np.random.default_rng(0), 1, 300, [[]])[0])
    with pytest.raises(InputError, match="5 sequences at once"):
        session.reset(5)
    inputs, _ = call(np.random.default_rng(0), 1, 2, [[]])
    inputs.input_ids[0, 0] = 10_000
    with pytest.raises(BackendError, match="token 10000 is outside the vocabulary"):
        session.step(inputs)


def test_logits_that_are_no_numbers_are_an_error(tensorrt_fakes):
    from lineahead.plugins.tensorrt.choice import scores_of, tokens_of

    device = tensorrt_fakes.Device()
    logits, keys = device.allocate(3 * 5 * 4), device.allocate(3 * 8)
    rows = np.array([[1, 3, 3, -2, 0], [-5, -4, -np.inf, -4, -9], [0, np.nan, 9, 1, 2]], np.float32)
    device.upload(logits, rows)
    tensorrt_fakes.Choice().enqueue(logits, keys, 3, 5, device)
    found = device.bytes_at(keys, 24).view(np.uint64)
    assert tokens_of(found).tolist() == [1, 1, 1]
    assert scores_of(found)[:2].tolist() == [3, -4]
    assert np.isnan(scores_of(found)[2])


def test_chains_that_are_too_long_for_trees_go_to_the_engine_for_prompts(session, reference):
    text = np.random.default_rng(5).integers(2, 258, 300)
    session.reset(2), reference.reset(2)
    accepted, sizes = 0, len(session._steps)
    for start in (0, 150):
        part = text[start : start + 150]
        inputs = StepInput(
            input_ids=np.tile(part, (2, 1)),
            ancestors=np.tri(150, dtype=bool)[None].repeat(2, 0),
            output_index=np.array([[149], [140]]),
            accept_index=np.tile(np.arange(accepted), (2, 1)),
            accept_count=np.full(2, accepted),
        )
        expected, found = reference.step(inputs), session.step(inputs)
        np.testing.assert_allclose(found.logits, expected.logits, atol=BOUND["fp32"], rtol=1e-4)
        accepted = 150
    assert {step.sizes.engine for step in list(session._steps.values())[sizes:]} == {1}
    tree, _ = call(np.random.default_rng(0), 2, 150, [[], []])
    with pytest.raises(InputError, match="150 nodes"):
        session.step(tree)


def test_what_a_chain_is():
    def judged(parents, spare=0):
        mask = np.eye(len(parents) + spare, dtype=bool)
        mask[: len(parents), : len(parents)] = ancestors(parents)
        inputs, _ = call(np.random.default_rng(0), 1, len(mask), [[]])
        return is_chain(replace(inputs, ancestors=mask[None]))

    assert judged((-1, 0, 1, 2))
    assert judged((-1, 0, 1), spare=2)
    assert judged((-1,), spare=3)
    assert not judged((-1, 0, 0))
    assert not judged((-1, 0, 1, 1), spare=1)
    assert not judged((-1, 0, 1, 0))


def test_the_serving_engine_decodes_on_it_as_alone(artifact, opened):
    import threading

    from lineahead.errors import InputError
    from lineahead.runtime.drafters import LookupDrafter
    from lineahead.runtime.engine import Engine, EngineConfig, Request
    from lineahead.runtime.generate import Generator
    from lineahead.runtime.sampling import SamplingParams
    from lineahead.runtime.tokenizer import Tokenizer

    found = read_artifact(artifact)
    generator = Generator(
        found, opened("fp32").sibling(), Tokenizer(found.folder), LookupDrafter(max_nodes=3)
    )
    random = np.random.default_rng(4)
    system = random.integers(2, 258, 50).tolist()
    requests = [
        Request(
            tokens=(*system[: 50 * (i % 2)], *random.integers(2, 258, 5 + 9 * i).tolist()),
            params=SamplingParams(max_tokens=12, temperature=0.5 * (i % 3), seed=i, ignore_eos=True),
        )
        for i in range(9)
    ]
    expected = [generator.generate([one.tokens], [one.params])[0].tokens for one in requests]
    with pytest.raises(InputError, match="built for 4 sequences"):
        Engine(generator, config=EngineConfig(slots=5))
    engine = Engine(generator, config=EngineConfig(slots=4, chunk=16, prefill_budget=16, governed=False))
    texts, left = {}, threading.Semaphore(0)

    def sink(delta):
        texts.setdefault(delta.request, []).extend(delta.tokens)
        if delta.finish:
            left.release()

    numbers = [engine.post(one, sink) for one in requests]
    engine.start()
    assert all(left.acquire(timeout=60) for _ in numbers)
    engine.close()
    assert [tuple(texts[number]) for number in numbers] == expected
    assert engine.statistics().cached_tokens > 0
    assert engine.statistics().failed_steps == 0
