"""Many requests at once: the same text as alone, whatever happens to the others."""

import asyncio
import time

import numpy as np
import pytest

from lineahead.errors import BackendError, InputError, OverloadError
from lineahead.runtime.engine import Request
from lineahead.runtime.sampling import SamplingParams


def test_texts_are_the_same_alone_and_in_any_batch(make, ask, alone, collected):
    requests = [ask(seed) for seed in range(30)]
    engine = make(slots=5)
    numbers = [engine.post(request, collected) for request in requests]
    collected.wait(numbers)
    for request, number in zip(requests, numbers, strict=True):
        assert (collected.tokens(number), collected.finish(number)) == alone(request), request
    found = engine.statistics()
    assert found.finished == {"length": 30}
    assert found.tokens == 30 * 24
    assert sum(found.accepted_at) > 100
    assert found.active == found.waiting == 0


def test_a_step_holds_at_most_the_slots_and_prompts_are_read_in_chunks(make, ask, collected, toy):
    session = toy.Session()
    engine = make(session, slots=3, speculate=False)
    numbers = [engine.post(ask(seed, prompt=tuple(range(13)) * 3), collected) for seed in range(9)]
    collected.wait(numbers)
    shapes = {call.input_ids.shape for call in session.calls}
    assert max(batch for batch, _ in shapes) == 3
    assert max(nodes for _, nodes in shapes) == 8
    assert all(batch == 1 for batch, nodes in shapes if nodes > 1)


def test_decoding_rows_wait_for_one_budget_of_prompt_at_most(make, ask, collected, toy):
    session = toy.Session()
    engine = make(session, slots=4, speculate=False, running=False, prefix_cache_bytes=0)
    engine.post(ask(1, prompt=(1,), max_tokens=40), collected)
    for seed in range(3):
        engine.post(ask(2 * seed + 3, prompt=tuple(range(13)) * 6), collected)
    engine.start()
    collected.wait(range(4))
    between, run = [], 0
    for call in session.calls:
        nodes = call.input_ids.shape[1]
        if nodes > 1:
            run += nodes
        elif call.accept_count.any():
            between.append(run)
            run = 0
    assert max(between) <= 8
    assert sum(between) > 200


def test_a_shared_beginning_is_read_once_and_changes_nothing(make, ask, alone, collected):
    system = tuple(int(one) for one in np.random.default_rng(7).integers(0, 13, 50))
    engine = make(slots=2)
    requests = [ask(seed, prompt=(*system, seed % 13, 3)) for seed in range(6)]
    for request in requests:
        number = engine.post(request, collected)
        collected.wait([number])
        assert collected.tokens(number) == alone(request)[0]
    cached = [collected.deltas[number][-1].cached_tokens for number in range(6)]
    assert cached == [0, *[48] * 5]
    assert engine.statistics().prompt_tokens == 52 + 5 * 4


def test_scopes_do_not_share_states(make, ask, collected):
    engine = make(slots=2)
    for scope in ("a", "b", "a"):
        request = ask(1, prompt=(1, 2, 3, 4) * 5)
        collected.wait([engine.post(Request(tokens=request.tokens, scope=scope), collected)])
    assert [collected.deltas[number][-1].cached_tokens for number in range(3)] == [0, 0, 16]


def test_a_cancelled_request_frees_its_slot_and_nobody_notices(make, ask, alone, collected):
    engine = make(slots=2)
    others = [engine.post(ask(seed), collected) for seed in (1, 2)]
    queued = engine.post(ask(3, max_tokens=10**6), collected)
    after = engine.post(ask(4), collected)
    engine.cancel(queued)
    long = engine.post(ask(5, max_tokens=10**6), collected)
    collected.wait([*others, after])
    with collected.ended:
        assert collected.ended.wait_for(lambda: len(collected.deltas.get(long, [])) > 3, 30)
    engine.cancel(long)
    engine.cancel(long)
    engine.cancel(12345)
    collected.wait([queued, long])
    assert collected.finish(queued) == collected.finish(long) == "cancelled"
    assert not collected.deltas[queued][0].tokens
    for number, seed in ((*others[:1], 1), (others[1], 2), (after, 4)):
        assert collected.tokens(number) == alone(ask(seed))[0]
    assert engine.statistics().active == 0


def test_deadlines_cut_waiting_and_decoding_requests(make, ask, collected):
    engine = make(slots=1)
    endless = [engine.post(ask(seed, max_tokens=10**6, timeout_s=0.2), collected) for seed in (1, 2)]
    short = engine.post(ask(3), collected)
    collected.wait([*endless, short])
    assert [collected.finish(number) for number in endless] == ["timeout", "timeout"]
    assert collected.tokens(endless[0])
    assert collected.finish(short) == "length"


def test_a_full_queue_refuses_with_a_time_and_a_draining_engine_refuses(make, ask, collected):
    engine = make(slots=1, queue=2, running=False)
    for seed in range(2):
        engine.post(ask(seed), collected)
    with pytest.raises(OverloadError, match="2 requests are waiting") as caught:
        engine.post(ask(3), collected)
    assert caught.value.retry_after_s >= 1
    engine.start()
    engine.close(timeout_s=30)
    assert [collected.finish(number) for number in range(2)] == ["length", "length"]
    with pytest.raises(OverloadError, match="no more requests"):
        engine.post(ask(3), collected)
    assert engine.statistics().refused == 2
    assert not engine.alive


def test_draining_cuts_at_the_deadline(make, ask, collected):
    engine = make(slots=1)
    numbers = [engine.post(ask(seed, max_tokens=10**6), collected) for seed in range(3)]
    start = time.monotonic()
    engine.close(timeout_s=0.3)
    assert time.monotonic() - start < 10
    assert {collected.finish(number) for number in numbers} == {"cancelled"}


def test_keys_share_fairly_whoever_asks_more(make, ask, collected):
    engine = make(slots=1, running=False)
    greedy = [engine.post(ask(seed, prompt=(1, 2), key="greedy"), collected) for seed in range(20)]
    modest = [engine.post(ask(seed, prompt=(1, 2), key="modest"), collected) for seed in range(3)]
    engine.start()
    collected.wait([*greedy, *modest])
    ends = list(dict.fromkeys(n for n in collected.deltas if collected.finish(n)))
    assert max(ends.index(number) for number in modest) < 8


@pytest.mark.slow
def test_ten_thousand_queued_requests_all_end(make, ask, alone, collected):
    engine = make(slots=32, queue=20_000, chunk=16, prefill_budget=64)
    requests = {seed: ask(seed, prompt=(seed % 13, seed % 7), max_tokens=1 + seed % 3) for seed in range(97)}
    numbers = {engine.post(requests[seed % 97], collected): seed % 97 for seed in range(10_000)}
    for number in list(numbers)[::11]:
        engine.cancel(number)
    collected.wait(numbers, timeout=120)
    expected = {seed: alone(request)[0] for seed, request in requests.items()}
    for number, seed in numbers.items():
        if collected.finish(number) != "cancelled":
            assert collected.tokens(number) == expected[seed]
    assert engine.statistics().finished["length"] >= 9_000


def failing(toy, when):
    """A toy model whose steps fail when `when` says so."""

    class Failing(toy.Session):
        def step(self, inputs):
            output = super().step(inputs)
            when(self, output)
            return output

    return Failing()


def test_a_step_that_raises_ends_its_own_requests_and_the_engine_goes_on(make, ask, alone, collected, toy):
    def when(session, output):
        if any(text[:2] == [12, 12] and len(text) > 6 for text in session.texts):
            raise ValueError("kernel trouble")

    engine = make(failing(toy, when), slots=2)
    poison = Request(tokens=(12, 12, 1), params=SamplingParams(max_tokens=30))
    numbers = [engine.post(ask(seed), collected) for seed in range(1, 7)]
    bad = engine.post(poison, collected)
    later = [engine.post(ask(seed), collected) for seed in range(7, 13)]
    collected.wait([*numbers, bad, *later])
    last = collected.deltas[bad][-1]
    assert last.finish == "error"
    assert isinstance(last.error, BackendError)
    assert "kernel trouble" in str(last.error)
    failed = [number for number in [*numbers, *later] if collected.finish(number) == "error"]
    assert len(failed) <= 1
    for number, seed in zip([*numbers, *later], range(1, 13), strict=True):
        if number not in failed:
            assert collected.tokens(number) == alone(ask(seed))[0]
    assert engine.statistics().failed_steps == 1
    assert engine.alive


def test_a_prompt_that_fails_while_it_is_read_fails_alone(make, ask, alone, collected, toy):
    def when(session, output):
        if any(pending[:3] == [12, 12, 12] for pending in session.pending):
            raise RuntimeError("no")

    engine = make(failing(toy, when), slots=4)
    numbers = {engine.post(ask(seed, prompt=(1, 2, seed)), collected): seed for seed in range(1, 5)}
    bad = engine.post(ask(5, prompt=(12,) * 9), collected)
    collected.wait([*numbers, bad])
    assert collected.finish(bad) == "error"
    for number, seed in numbers.items():
        assert collected.tokens(number) == alone(ask(seed, prompt=(1, 2, seed)))[0]


@pytest.mark.parametrize("seed", [1, 2])
def test_logits_that_are_no_numbers_fail_their_own_row(make, ask, alone, collected, toy, seed):
    def when(session, output):
        for row, text in enumerate(session.texts):
            if text[:2] == [12, 12] and len(text) > 6:
                output.logits[row] = np.nan

    engine = make(failing(toy, when), slots=8)
    bad = engine.post(ask(seed, prompt=(12, 12, 1)), collected)
    numbers = {engine.post(ask(one), collected): one for one in range(3, 12)}
    collected.wait([bad, *numbers])
    last = collected.deltas[bad][-1]
    assert (last.finish, "nan" in str(last.error)) == ("error", True)
    assert collected.tokens(bad)
    for number, one in numbers.items():
        assert collected.tokens(number) == alone(ask(one))[0]
    assert engine.statistics().failed_steps == 0


def test_requests_choose_their_own_draft_length(make, collected, toy):
    prompt = (1, 2, 3, 4, 5) * 4
    engine = make(slots=1)
    for nodes in (0, 2, None):
        params = SamplingParams(max_tokens=30)
        request = Request(tokens=prompt, params=params, draft_nodes=nodes)
        collected.wait([engine.post(request, collected)])
    most = [
        max(sum(delta.drafted) + len(delta.rejected) for delta in collected.deltas[number])
        for number in range(3)
    ]
    assert most == [0, 2, 4]
    assert collected.tokens(0) == collected.tokens(1) == collected.tokens(2)


def test_biases_and_log_probabilities(make, collected, toy):
    engine = make(slots=2)
    plain = engine.post(Request(tokens=(1, 2), params=SamplingParams(max_tokens=6), logprobs=3), collected)
    collected.wait([plain])
    first = collected.tokens(plain)[0]
    banned = engine.post(
        Request(tokens=(1, 2), params=SamplingParams(max_tokens=6), bias={first: -100.0}), collected
    )
    collected.wait([banned])
    assert first not in collected.tokens(banned)
    found = [one for delta in collected.deltas[plain] for one in delta.logprobs]
    assert [one.token for one in found] == collected.tokens(plain)
    for one in found:
        assert one.top[0] == (one.token, one.logprob)
        assert len(one.top) == 3
        assert one.logprob < 0


def test_prompts_that_cannot_be_read_are_refused(make, collected):
    engine = make(running=False)
    with pytest.raises(InputError, match="logit_bias"):
        engine.post(Request(tokens=(1,), bias={99: 1.0}), collected)


def test_streams_cross_into_an_event_loop_and_leaving_cancels(make, ask, alone):
    engine = make(slots=2)

    async def read(seed):
        async with engine.submit(ask(seed)) as stream:
            return [token async for delta in stream for token in delta.tokens]

    async def leave():
        async with engine.submit(ask(1, max_tokens=10**6)) as stream:
            async for _ in stream:
                break

    async def main():
        texts = await asyncio.gather(*(read(seed) for seed in range(6)), leave())
        await engine.drain(timeout_s=20)
        return texts[:-1]

    assert asyncio.run(main()) == [alone(ask(seed))[0] for seed in range(6)]
    assert engine.statistics().finished == {"length": 6, "cancelled": 1}
