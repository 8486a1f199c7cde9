"""Drafts within a TensorRT session's steps, on fakes: the text is plain decoding's, whatever is proposed."""

from dataclasses import replace

import numpy as np
import pytest

from lineahead.convert.tensorrt.draft_graph import draft_graph
from lineahead.convert.tensorrt.export import Options
from lineahead.convert.tensorrt.graph import save_for_check
from lineahead.errors import BackendError, InputError
from lineahead.plugins.tensorrt.record import VERIFIER, Bucket
from lineahead.runtime.artifact import read_artifact
from lineahead.runtime.backends.tensorrt import TensorRTSession
from lineahead.runtime.bench import report
from lineahead.runtime.drafters import LookupDrafter, StepDrafter
from lineahead.runtime.drafters.combined import CombinedDrafter
from lineahead.runtime.drafters.in_step import InStepDrafter
from lineahead.runtime.drafters.recurrent import RecurrentDrafter
from lineahead.runtime.generate import Generator, open_drafter
from lineahead.runtime.sampling import SamplingParams
from lineahead.runtime.session import StepInput
from lineahead.runtime.tokenizer import Tokenizer
from lineahead.runtime.verify import verify

PROMPTS = ("abcabcabcabc", "hello hello hello", "x")
VOCABULARY = 300


def told(generator, monkeypatch, text, wrong=lambda place: False):
    """Let the device draft what `text` will be, wrongly where asked, as if the draft engine had said so.

    Args:
        generator: of the session.
        monkeypatch: pytest's.
        text: token lists by request; rows are told apart by what they have read.
        wrong: whether the token at a place of a text is to be another one.
    """
    kernels, roots = generator.session._served.kernels, {}

    def chosen(self, scores, names, ids, tokens, *, rows, width, nodes, place, device):
        def run():
            view = device.bytes_at(ids, rows * nodes * 4).view(np.int32).reshape(rows, nodes)
            for row, one in enumerate(roots["rows"]):
                at = len(one.tokens) - 1 + place
                whole = text[one.request]
                token = whole[at] if at < len(whole) else 5
                view[row, place] = (token + wrong(at)) % VOCABULARY

        device._do(run)

    def step(self, *arguments):
        roots["rows"] = self.rows
        return original(self, *arguments)

    from lineahead.runtime.speculate import Decoder

    original = Decoder._drafted_step
    monkeypatch.setattr(Decoder, "_drafted_step", step)
    monkeypatch.setattr(type(kernels), "choose", chosen)
    return InStepDrafter(max_nodes=4)


def decode(generator, prompts, params, drafter=None):
    return [one.tokens for one in generator.generate(prompts, params, drafter=drafter)]


def prompts_of(generator, count=3):
    return [generator.encode(one) for one in PROMPTS[:count]]


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_the_text_is_plain_decodings_with_the_drafts_own_proposals(generator, batch):
    params, prompts = SamplingParams(max_tokens=24, ignore_eos=True), prompts_of(generator, batch)
    plain = decode(generator, prompts, params)
    drafter = InStepDrafter(max_nodes=4)
    assert isinstance(drafter, StepDrafter)
    assert decode(generator, prompts, params, drafter) == plain
    assert generator.statistics.proposed > 3 * 10 * batch


@pytest.mark.parametrize(
    ("wrong", "steps"),
    [(lambda at: False, 7), (lambda at: True, 28), (lambda at: at % 3 == 0, 14)],
    ids=["all accepted", "none accepted", "some accepted"],
)
def test_right_proposals_are_accepted_and_wrong_ones_are_not(generator, monkeypatch, wrong, steps):
    params, prompts = SamplingParams(max_tokens=30, ignore_eos=True), prompts_of(generator, 2)
    plain = decode(generator, prompts, params)
    text = [[*prompt, *tokens] for prompt, tokens in zip(prompts, plain, strict=True)]
    drafter = told(generator, monkeypatch, text, wrong)
    assert decode(generator, prompts, params, drafter) == plain
    seen = generator.statistics
    assert seen.steps <= steps + 1
    assert (seen.accepted == 0) == (steps == 28)


def test_the_engine_drafts_what_the_same_graph_drafts_on_the_host(generator, drafting):
    """Chains of the device against chains of the host's drafter, with the same graph in float32."""
    session = generator.session
    found = read_artifact(drafting)
    model, draft = draft_graph(found.draft_graph(), "fp32")
    path = drafting / "wide.onnx"
    save_for_check(model, path)
    import onnxruntime

    wide = onnxruntime.InferenceSession(str(path))

    def stepper(hidden, tokens):
        guess, scores = wide.run(
            ["guess", "scores"], {"hidden_states": hidden, "input_ids": tokens.astype(np.int32)}
        )
        best = scores.argmax(-1)
        return guess, draft.names[best][:, None].astype(np.int64), np.zeros((len(best), 1), np.float32)

    host = RecurrentDrafter(stepper, max_nodes=4, depth=4, branches=1, least=0.0)
    seen = []

    class Recorded(InStepDrafter):
        def in_step(self, rows):
            seen.append(host.propose(rows))
            return super().in_step(rows)

    drafted = []
    original = session.draft_step

    def draft_step(inputs, hidden, count):
        tokens, output = original(inputs, hidden, count)
        drafted.append(tokens.tolist())
        return tokens, output

    session.draft_step = draft_step
    params = SamplingParams(max_tokens=24, ignore_eos=True)
    decode(generator, prompts_of(generator), params, Recorded(max_nodes=4))
    whole = [pair for pair in zip(drafted, seen, strict=True) if len(pair[0]) == len(pair[1])]
    assert len(whole) > 15  # at the end of a text a row has no room for proposals, and is not asked
    for tokens, trees in whole:
        for one, tree in zip(tokens, trees, strict=True):
            assert tuple(one[: len(tree) - 1]) == tree.tokens[1:]
    assert any(len(tree) == 5 for trees in seen for tree in trees)


def test_verify_tries_it_too(generator):
    report = verify(generator, ["Hello", "What"], tokens=8)
    assert report.identical
    assert "recurrent in the step" in [check.drafter for check in report.checks]


def test_half_precision_writes_its_own_plain_text(drafting, drafting_sessions):
    found = read_artifact(drafting)
    generator = Generator(found, drafting_sessions("fp16").sibling(), Tokenizer(found.folder))
    params, prompts = SamplingParams(max_tokens=24, ignore_eos=True), prompts_of(generator)
    drafter = InStepDrafter(max_nodes=4)
    assert decode(generator, prompts, params, drafter) == decode(generator, prompts, params)


def test_a_text_that_ends_within_a_chain_ends_there(generator, monkeypatch):
    params, (prompt,) = SamplingParams(max_tokens=30), prompts_of(generator, 1)
    whole = decode(generator, [prompt], SamplingParams(max_tokens=30, ignore_eos=True))[0]
    place = next(i for i in range(6, 20) if whole[i] not in whole[:i])
    object.__setattr__(generator.artifact, "eos", frozenset([whole[place]]))
    plain = decode(generator, [prompt], params)
    assert plain == [whole[: place + 1]]
    for most in (1, 2, 3, 4):
        drafter = told(generator, monkeypatch, [[*prompt, *whole]])
        drafter.max_nodes = most
        assert decode(generator, [prompt], params, drafter) == plain
        assert generator.statistics.accepted > 0
        monkeypatch.undo()


@pytest.mark.parametrize("length", [1, 2, 3, 5, 6, 7])
def test_no_text_is_longer_than_asked_for(generator, monkeypatch, length):
    params, prompts = SamplingParams(max_tokens=length, ignore_eos=True), prompts_of(generator, 2)
    more = decode(generator, prompts, SamplingParams(max_tokens=20, ignore_eos=True))
    drafter = told(generator, monkeypatch, [[*a, *b] for a, b in zip(prompts, more, strict=True)])
    assert decode(generator, prompts, params, drafter) == [one[:length] for one in more]


def test_rows_that_finish_leave_the_others_as_they_were(generator, monkeypatch):
    prompts = prompts_of(generator)
    each = [SamplingParams(max_tokens=one, ignore_eos=True) for one in (5, 29, 13)]
    plain = decode(generator, prompts, each)
    text = [[*a, *b] for a, b in zip(prompts, plain, strict=True)]
    drafter = told(generator, monkeypatch, text, lambda at: at % 4 == 0)
    assert decode(generator, prompts, each, drafter) == plain


def test_the_positions_end_where_the_model_says(generator):
    (prompt,) = prompts_of(generator, 1)
    params = SamplingParams(max_tokens=400, ignore_eos=True)
    drafter = InStepDrafter(max_nodes=4)
    plain = generator.generate([prompt], params)[0]
    drafted = generator.generate([prompt], params, drafter=drafter)[0]
    assert plain.finish == drafted.finish == "context"
    assert plain.tokens == drafted.tokens


def test_sampled_text_is_that_of_the_seed(generator):
    prompts = prompts_of(generator)
    params = SamplingParams(max_tokens=20, temperature=0.8, top_p=0.9, seed=3, ignore_eos=True)
    drafter = InStepDrafter(max_nodes=4)
    assert decode(generator, prompts, params, drafter) == decode(generator, prompts, params)
    assert generator.statistics.proposed == 0
    decode(generator, prompts, params, drafter)
    assert generator.statistics.proposed > 50


def test_biases_and_the_least_number_of_tokens_hold(generator):
    (prompt,) = prompts_of(generator, 1)
    params = SamplingParams(max_tokens=20, min_tokens=15)
    first = decode(generator, [prompt], SamplingParams(max_tokens=1, ignore_eos=True))[0][0]
    object.__setattr__(generator.artifact, "eos", frozenset([first]))
    drafter = InStepDrafter(max_nodes=4)
    plain = decode(generator, [prompt], params)
    assert len(plain[0]) >= 15
    assert decode(generator, [prompt], params, drafter) == plain


def test_a_governor_may_choose_the_length(generator, monkeypatch):
    prompts = prompts_of(generator, 2)
    params = SamplingParams(max_tokens=60, ignore_eos=True)
    plain = decode(generator, prompts, params)
    text = [[*a, *b] for a, b in zip(prompts, plain, strict=True)]
    drafter, counts = told(generator, monkeypatch, text, lambda at: at % 5 == 0), set()
    original = generator.session.draft_step
    generator.session.draft_step = lambda inputs, hidden, count: (
        counts.add(count) or original(inputs, hidden, count)
    )
    found = generator.generate(prompts, params, drafter=drafter, governed=True)
    assert [one.tokens for one in found] == plain
    assert counts


def test_a_step_is_one_launch_and_fetches_ids_alone(generator):
    device, (prompt,) = generator.session._device, prompts_of(generator, 1)
    drafter = InStepDrafter(max_nodes=4)
    params = SamplingParams(max_tokens=40, ignore_eos=True)
    for _ in range(3):  # until every set of sizes was seen on either side
        decode(generator, [prompt], params, drafter)
    fetched, launches = [], device.launches
    download = device.download

    def counted(array, address):
        fetched.append(array.nbytes)
        download(array, address)

    device.download = counted
    try:
        decode(generator, [prompt], params, drafter)
    finally:
        del device.download
    assert generator.statistics.steps >= 8
    assert fetched == []
    assert device.launches - launches == generator.statistics.steps + 1  # the prompt is one call, too


def test_lookup_comes_first_and_the_draft_where_it_finds_nothing(generator):
    prompts = [[*generator.encode("abcabcabcabc")], [7, 9, 11]]
    params = SamplingParams(max_tokens=24, ignore_eos=True)
    plain = decode(generator, prompts, params)
    trained = InStepDrafter(max_nodes=4)
    asked = []
    original = generator.session.draft_step
    generator.session.draft_step = lambda *arguments: asked.append(1) or original(*arguments)
    drafter = CombinedDrafter(LookupDrafter(max_nodes=4), trained)
    assert decode(generator, prompts, params, drafter) == plain
    assert 0 < len(asked) < generator.statistics.steps


def test_the_serving_engine_drafts_in_its_steps(drafting, drafting_sessions):
    import threading

    from lineahead.runtime.engine import Engine, EngineConfig, Request

    found = read_artifact(drafting)
    session = drafting_sessions().sibling()
    generator = Generator(found, session, Tokenizer(found.folder), InStepDrafter(max_nodes=3))
    random = np.random.default_rng(4)
    requests = [
        Request(
            tokens=tuple(random.integers(2, 258, 5 + 9 * i).tolist()),
            params=SamplingParams(max_tokens=12, temperature=0.5 * (i % 2), seed=i, ignore_eos=True),
        )
        for i in range(7)
    ]
    expected = [
        generator.generate([one.tokens], [one.params], drafter=LookupDrafter())[0].tokens for one in requests
    ]
    engine = Engine(generator, config=EngineConfig(slots=4, chunk=16, prefill_budget=16, governed=False))
    texts, left, drafted = {}, threading.Semaphore(0), []

    def sink(delta):
        texts.setdefault(delta.request, []).extend(delta.tokens)
        if delta.finish:
            left.release()

    original = TensorRTSession.draft_step
    TensorRTSession.draft_step = lambda self, *rest: drafted.append(1) or original(self, *rest)
    try:
        numbers = [engine.post(one, sink) for one in requests]
        engine.start()
        assert all(left.acquire(timeout=60) for _ in numbers)
        engine.close()
    finally:
        TensorRTSession.draft_step = original
    assert [tuple(texts[number]) for number in numbers] == expected
    assert engine.statistics().failed_steps == 0
    assert drafted


def test_where_the_engines_cannot_draft_the_steps_are_plain(drafting, drafting_sessions):
    found = read_artifact(drafting)
    session = drafting_sessions(drafts=(Bucket(batch=1, nodes=1, results=1),)).sibling()
    generator = Generator(found, session, Tokenizer(found.folder))
    params, prompts = SamplingParams(max_tokens=8, ignore_eos=True), prompts_of(generator, 2)
    plain = decode(generator, prompts, params)
    drafter = InStepDrafter(max_nodes=4)
    assert decode(generator, prompts, params, drafter) == plain
    assert generator.statistics.proposed == 0  # the draft engine has no profile for two sequences
    session.reset(2)
    assert session.most_drafted == 0
    chain = StepInput(
        input_ids=np.zeros((2, 2), np.int64),
        ancestors=np.tile(np.tri(2, dtype=bool), (2, 1, 1)),
        output_index=np.tile(np.arange(2), (2, 1)),
        accept_index=np.zeros((2, 0), np.int64),
        accept_count=np.zeros(2, np.int64),
    )
    with pytest.raises(InputError, match="1 tokens for 2 sequences; the engines can draft 0 for 2"):
        session.draft_step(chain, [None, None], 1)


def test_a_hidden_state_is_gone_after_the_next_call(generator):
    session = generator.session
    session.reset(1)
    one = StepInput(
        input_ids=np.array([[5]]),
        ancestors=np.ones((1, 1, 1), bool),
        output_index=np.zeros((1, 1), np.int64),
        accept_index=np.zeros((1, 0), np.int64),
        accept_count=np.zeros(1, np.int64),
    )
    held = session.step(one).hold(0, 0)
    value = np.asarray(held)
    assert value.shape == (32,)
    assert np.abs(value).max() > 0
    session.step(one)
    with pytest.raises(BackendError, match="after the next step"):
        np.asarray(held)
    with pytest.raises(BackendError, match="after the next step"):
        session.draft_step(one, [held], 1)


def test_the_drafter_is_the_sessions_where_it_has_one(generator, drafting):
    found = read_artifact(drafting)
    assert isinstance(open_drafter(found, "recurrent", nodes=3, session=generator.session), InStepDrafter)
    assert open_drafter(found, "recurrent", nodes=3, session=generator.session).max_nodes == 3
    assert isinstance(open_drafter(found, "recurrent", nodes=3), RecurrentDrafter)


def test_a_benchmark_has_plain_decoding_beside_drafts_within_steps(generator, monkeypatch, tmp_path):
    monkeypatch.setattr(report.Generator, "load", classmethod(lambda cls, folder, **options: generator))
    monkeypatch.setattr(report, "machine", lambda threads, *, gpu: {"gpu": gpu})
    monkeypatch.setattr(report, "engine_machine", lambda backend: None)
    monkeypatch.setattr(report, "graph_bytes", lambda *arguments: 1000)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    request = report.BenchRequest(
        contexts=(16,), precisions=("fp16",), backend="tensorrt", prompts=prompts, tokens=8, samples=2
    )
    found = report.bench(generator.artifact.folder, request)
    assert found.machine == {"gpu": True}
    assert found.decode["fp16"]["costs"][0]["median_ms"] > 0
    names = {one["drafter"] for one in found.speculation["fp16"]["drafters"]}
    assert names == {"lookup 5", "recurrent chain 5", "recurrent tree 5", "auto 5"}


def test_default_buckets_serve_long_prompts_and_proposals_in_batches(drafting, generator):
    served = [replace(one, buckets=Options().sizes(VERIFIER)) for one in generator.session._engines]
    like = generator.session
    session = TensorRTSession(served, like._device, identity=like.identity, choice=like._choice)
    own = Generator(generator.artifact, session, Tokenizer(generator.artifact.folder))
    params = SamplingParams(max_tokens=12)
    for prompts in (["abc " * 20, "hello " * 12], ["abcabc", "xyzxyz", "q"], ["abc " * 24]):
        for drafter in (None, LookupDrafter(max_nodes=8)):
            assert decode(own, prompts, params, drafter) == decode(Generator.load(drafting), prompts, params)
