import numpy as np
import pytest

from lineahead.errors import BackendError
from lineahead.runtime.drafters import LookupDrafter
from lineahead.runtime.drafters.recorded import RecordedDrafter
from lineahead.runtime.layout import Part
from lineahead.runtime.sampling import SamplingParams
from lineahead.runtime.session import StepOutput
from lineahead.runtime.speculate import Decoder

PROMPTS = [[1, 2, 3], [4] * 11, [5], [6, 7, 8, 9, 10, 11, 12]]
GREEDY = [SamplingParams(max_tokens=n) for n in (60, 25, 90, 1)]
SAMPLED = [
    SamplingParams(max_tokens=60, temperature=1.0, seed=3),
    SamplingParams(max_tokens=25, temperature=0.7, top_k=5),
    SamplingParams(max_tokens=90, temperature=1.3, top_p=0.8, seed=9),
    SamplingParams(max_tokens=40),
]


def rows(toy, params):
    return [toy.row(i, prompt, one) for i, (prompt, one) in enumerate(zip(PROMPTS, params, strict=True))]


def drafters(texts):
    recorded = {"texts": texts, "vocab_size": 13}
    return {
        "lookup": LookupDrafter(shortest=1, longest=3, max_nodes=5),
        "chain": RecordedDrafter(**recorded, depth=6),
        "chain, all right": RecordedDrafter(**recorded, depth=6, hit_rate=1.0),
        "chain, all wrong": RecordedDrafter(**recorded, depth=3, hit_rate=0.0),
        "tree": RecordedDrafter(**recorded, depth=4, branches=3, hit_rate=0.8),
    }


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("chunk", [1, 4, 256])
def test_text_does_not_depend_on_the_drafter(toy, params, chunk):
    plain, _ = toy.decode(toy.Session(), rows(toy, params), chunk=chunk)
    for name, drafter in drafters(plain).items():
        found, run = toy.decode(toy.Session(), rows(toy, params), drafter, chunk=chunk)
        assert found == plain, name
        accepted = run.decoder.statistics.accepted
        assert (accepted == 0) == ("wrong" in name), name


def test_text_does_not_depend_on_the_batch(toy):
    together, _ = toy.decode(toy.Session(), rows(toy, SAMPLED))
    for row in rows(toy, SAMPLED):
        alone, _ = toy.decode(toy.Session(), [row])
        assert alone[row.request] == together[row.request]


def test_plain_decoding_follows_the_model(toy):
    session = toy.Session()
    found, _ = toy.decode(session, [toy.row(0, [1, 2])])
    text = [1, 2]
    for _ in range(40):
        text.append(int(session.logits(text).argmax()))
    assert found[0] == text


@pytest.mark.parametrize(
    "mutant",
    [
        lambda part, path: [*range(len(part.chain)), *(len(part.chain) + node for node in path)],
        lambda part, path: [*range(len(part.chain) + len(path))],
        lambda part, path: [*(len(part.chain) - 1 + node for node in path)],
    ],
    ids=["off by one", "rows instead of path", "root not committed"],
)
def test_commit_mistakes_change_the_text(toy, monkeypatch, mutant):
    plain, _ = toy.decode(toy.Session(), rows(toy, GREEDY))
    monkeypatch.setattr(Part, "accept", mutant)
    with np.errstate(all="ignore"):
        try:
            found, _ = toy.decode(toy.Session(), rows(toy, GREEDY), drafters(plain)["tree"])
        except (IndexError, ValueError):
            return
    assert found != plain


def test_rows_join_and_leave_a_running_batch(toy):
    alone, _ = toy.decode(toy.Session(), rows(toy, GREEDY))
    decoder = Decoder(toy.Session(), LookupDrafter(shortest=1, longest=2), chunk=4)
    first, second, third, fourth = rows(toy, GREEDY)
    decoder.admit([first, second])
    for _ in range(5):
        decoder.step()
    decoder.admit([third])
    for _ in range(7):
        decoder.step()
    decoder.admit([fourth])
    decoder.cancel(1)
    list(decoder.run())
    assert second.finish == "cancelled"
    for row in (first, third, fourth):
        assert row.tokens == alone[row.request]
    list(decoder.run())
    again = toy.row(9, PROMPTS[0], GREEDY[0])
    decoder.admit([again])
    list(decoder.run())
    assert again.tokens == alone[0]


def test_a_step_reads_prompts_in_chunks_and_wants_one_result_for_them(toy):
    session = toy.Session()
    toy.decode(session, [toy.row(0, range(1, 11), SamplingParams(max_tokens=2))], chunk=4)
    assert [call.input_ids.shape[1] for call in session.calls] == [4, 4, 2, 1]
    assert [call.output_index.shape[1] for call in session.calls] == [1, 1, 1, 1]
    assert [call.accept_count.tolist() for call in session.calls] == [[0], [4], [4], [2]]


def test_end_of_sequence_ends_a_row_in_the_middle_of_an_accepted_path(toy):
    plain, _ = toy.decode(toy.Session(), [toy.row(0, [1, 2, 3])])
    end = plain[0][20]
    first = plain[0].index(end, 3)
    drafter = RecordedDrafter(plain, vocab_size=13, depth=8, hit_rate=1.0)
    row = toy.row(0, [1, 2, 3], eos=frozenset([end]))
    _, run = toy.decode(toy.Session(), [row], drafter)
    assert row.tokens == plain[0][: first + 1]
    assert row.finish == "eos"
    assert run.events[-1].finish == "eos"
    assert sum(len(event.tokens) for event in run.events) == len(row.tokens) - 3


def test_min_tokens_forbids_the_end_and_ignore_eos_ignores_it(toy):
    plain, _ = toy.decode(toy.Session(), [toy.row(0, [1, 2, 3])])
    end = plain[0][5]
    params = SamplingParams(max_tokens=30, min_tokens=12)
    row = toy.row(0, [1, 2, 3], params, eos=frozenset([end]))
    toy.decode(toy.Session(), [row])
    assert end not in row.tokens[3 : 3 + 12]
    texts = {0: row.tokens}
    again = toy.row(0, [1, 2, 3], params, eos=frozenset([end]))
    toy.decode(toy.Session(), [again], RecordedDrafter(texts, vocab_size=13, depth=5, branches=2))
    assert again.tokens == row.tokens
    free = toy.row(0, [1, 2, 3], SamplingParams(max_tokens=40, ignore_eos=True), eos=frozenset([end]))
    toy.decode(toy.Session(), [free])
    assert free.tokens == plain[0]


@pytest.mark.parametrize("limit", [4, 5, 20])
def test_the_position_limit_ends_a_row_and_no_node_lies_beyond_it(toy, limit):
    plain, _ = toy.decode(toy.Session(), [toy.row(0, [1, 2, 3])])
    session = toy.Session()
    row = toy.row(0, [1, 2, 3], limit=limit)
    toy.decode(session, [row], RecordedDrafter(plain, vocab_size=13, depth=6, hit_rate=1.0))
    assert row.tokens == plain[0][:limit]
    assert row.finish == "context"
    length = 0
    for call in session.calls:
        length += int(call.accept_count[0])
        assert length + call.ancestors[0].sum(-1).max() <= limit


def test_events_say_what_was_drafted(toy):
    plain, _ = toy.decode(toy.Session(), rows(toy, GREEDY))
    _, run = toy.decode(toy.Session(), rows(toy, GREEDY), drafters(plain)["tree"])
    for event in run.events:
        assert len(event.tokens) == len(event.drafted)
        assert all(event.drafted[:-1])
    stats = run.decoder.statistics
    assert sum(sum(event.drafted) for event in run.events) == stats.accepted
    assert stats.tokens == sum(map(len, plain.values())) - sum(map(len, PROMPTS))
    assert stats.accepted_at == sorted(stats.accepted_at, reverse=True)
    assert sum(stats.accepted_at) == stats.accepted
    assert stats.tokens_per_step == pytest.approx(1 + stats.accepted_per_step, rel=0.1)


def test_logits_that_are_not_numbers_are_an_error(toy):
    class Broken(toy.Session):
        def step(self, inputs):
            output = super().step(inputs)
            return StepOutput(logits=output.logits * np.nan, hidden=output.hidden)

    for params in (SamplingParams(), SamplingParams(temperature=1.0)):
        with pytest.raises(BackendError, match="best logit"):
            toy.decode(Broken(), [toy.row(0, [1, 2], params)])
