"""The engine over real backends: texts alone and in any batch, prefixes bit for bit, rows that move."""

import numpy as np
import pytest

from lineahead.plugins.augmented_attention import native
from lineahead.runtime.engine import Engine, EngineConfig, Request
from lineahead.runtime.generate import Generator
from lineahead.runtime.sampling import SamplingParams
from lineahead.runtime.session import StepInput

KINDS = {
    "function": {"implementation": "function"},
    "native": {"implementation": "native"},
    "eager": {"backend": "eager"},
}


@pytest.fixture(params=KINDS)
def options(request):
    if request.param == "native" and native.status().reason is not None:
        pytest.skip(native.status().reason)
    return {"threads": 1, **KINDS[request.param]}


def requests():
    random = np.random.default_rng(3)
    system = random.integers(2, 258, 40).tolist()
    for seed in range(12):
        own = random.integers(2, 258, int(random.integers(1, 30))).tolist()
        tokens = (*system, *own) if seed % 3 else tuple(own)
        params = SamplingParams(max_tokens=20, temperature=0.7 * (seed % 2), seed=seed, ignore_eos=True)
        yield Request(tokens=tokens, params=params)


@pytest.mark.parametrize("folder", ["artifact", "hybrid_artifact"])
def test_texts_are_those_of_single_requests(request, options, folder, collected):
    folder = request.getfixturevalue(folder)
    generator = Generator.load(folder, **options)
    expected = [generator.generate([one.tokens], [one.params])[0].tokens for one in requests()]
    config = EngineConfig(slots=4, chunk=16, prefill_budget=16, governed=False)
    engine = Engine.load(folder, config=config, drafter="lookup", draft_nodes=3, **options)
    numbers = [engine.post(one, collected) for one in requests()]
    engine.start()
    collected.wait(numbers)
    engine.close()
    assert [tuple(collected.tokens(number)) for number in numbers] == expected
    assert engine.statistics().cached_tokens > 0
    assert engine.statistics().failed_steps == 0


def chain(tokens, accepted=0):
    nodes = len(tokens)
    return StepInput(
        input_ids=np.array([tokens]),
        ancestors=np.tri(nodes, dtype=bool)[None],
        output_index=np.array([[nodes - 1]]),
        accept_index=np.arange(accepted)[None],
        accept_count=np.array([accepted]),
    )


@pytest.mark.parametrize("folder", ["artifact", "hybrid_artifact"])
def test_a_row_goes_on_elsewhere_with_what_was_pending(request, options, folder):
    session = Generator.load(request.getfixturevalue(folder), **options).session
    random = np.random.default_rng(0)
    text = random.integers(2, 258, 40).tolist()
    session.reset(1)
    session.step(chain(text[:20]))
    session.step(chain(text[20:39], 20))
    saved = session.take(0)
    expected = session.step(chain(text[39:], 19)).logits[0, 0].copy()
    other = session.sibling()
    other.reset(2)
    other.step(
        StepInput(
            input_ids=np.array([[5, 6], [7, 8]]),
            ancestors=np.tri(2, dtype=bool)[None].repeat(2, 0),
            output_index=np.array([[1], [1]]),
            accept_index=np.zeros((2, 0), np.int64),
            accept_count=np.zeros(2, np.int64),
        )
    )
    alone = session.sibling()
    alone.reset(1)
    alone.step(chain([5, 6]))
    kept = alone.step(chain([9], 2)).logits[0, 0].copy()
    other.fork([0, 1, -1])
    other.place(1, saved)
    assert other.length.tolist() == [0, 20, 0]
    accept = np.zeros((3, 19), np.int64)
    accept[0, :2], accept[1] = (0, 1), np.arange(19)
    found = other.step(
        StepInput(
            input_ids=np.array([[9], [text[39]], [4]]),
            ancestors=np.ones((3, 1, 1), bool),
            output_index=np.zeros((3, 1), np.int64),
            accept_index=accept,
            accept_count=np.array([2, 19, 0]),
        )
    ).logits
    np.testing.assert_allclose(found[1, 0], expected, atol=1e-4)
    np.testing.assert_allclose(found[0, 0], kept, atol=1e-4)
    assert other.length.tolist() == [2, 39, 0]
    assert session.length.tolist() == [39]


def test_a_cached_beginning_gives_the_same_bits(artifact, options):
    from lineahead.runtime.engine.lane import Lane
    from lineahead.runtime.engine.prefix_cache import PrefixCache
    from lineahead.runtime.row import Row
    from lineahead.runtime.sampling import stream

    session = Generator.load(artifact, **options).session
    lane = Lane(session.sibling(), PrefixCache(1 << 26, grain=16), chunk=16)
    text = np.random.default_rng(1).integers(2, 258, 60).tolist()
    seen = []
    for request in range(2):
        params = SamplingParams(max_tokens=2)
        lane.begin(
            Row(request=request, tokens=list(text), prompt=60, params=params, random=stream(params, 0)),
            scope="",
        )
        event = None
        while event is None:
            event = lane.step()
        row, saved = lane.release()
        seen.append(
            (lane.cached, row.hidden.copy(), {name: one.tolist() for name, one in saved.state.items()})
        )
    assert [one[0] for one in seen] == [0, 48]
    assert (seen[0][1] == seen[1][1]).all()
    assert seen[0][2] == seen[1][2]
