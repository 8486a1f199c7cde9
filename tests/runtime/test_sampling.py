import numpy as np
import pytest

from lineahead.errors import BackendError, InputError
from lineahead.runtime.sampling import SamplingParams, distribution, distribution_of_best, draw, stream


def naive(logits, params):
    """Sort everything."""
    scores = logits.astype(np.float64) / params.temperature
    order = np.lexsort((np.arange(len(scores)), -scores))
    kept = order[: params.top_k or None]
    weights = np.exp(scores[kept] - scores.max())
    weights /= weights.sum()
    count = int(np.searchsorted(np.cumsum(weights), params.top_p)) + 1 if params.top_p < 1 else len(kept)
    full = np.zeros(len(scores))
    full[kept[:count]] = weights[:count] / weights[:count].sum()
    return full


@pytest.mark.parametrize("vocab", [7, 3000])
@pytest.mark.parametrize("top_k", [0, 1, 5, 10_000])
@pytest.mark.parametrize("top_p", [0.001, 0.5, 0.9, 0.9999, 1.0])
@pytest.mark.parametrize("spread", [0.01, 3.0])
def test_distribution(vocab, top_k, top_p, spread):
    logits = np.random.default_rng(0).normal(size=vocab).astype(np.float32) * spread
    params = SamplingParams(temperature=0.7, top_k=top_k, top_p=top_p)
    found = distribution(logits, params)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, naive(logits, params), atol=1e-12)


def test_ties_and_forbidden_tokens():
    logits = np.array([1, 2, 2, 2, -np.inf], np.float32)
    np.testing.assert_allclose(
        distribution(logits, SamplingParams(temperature=1, top_k=2)), [0, 0.5, 0.5, 0, 0]
    )
    assert distribution(logits, SamplingParams(temperature=5.0))[4] == 0
    np.testing.assert_array_equal(distribution(logits, SamplingParams()), [0, 1, 0, 0, 0])
    with pytest.raises(BackendError):
        distribution(np.array([0, np.nan]), SamplingParams(temperature=1))
    with pytest.raises(BackendError):
        distribution(np.array([-np.inf, -np.inf]), SamplingParams(temperature=1))


def test_draw_inverts_the_cumulative_distribution():
    weights = np.array([0, 0.25, 0, 0.5, 0.25, 0])
    assert [draw(weights, u) for u in (0, 0.2499, 0.25, 0.7499, 0.75, 1 - 1e-17)] == [1, 1, 3, 3, 4, 4]


def test_streams_belong_to_requests():
    params = SamplingParams(seed=3)
    assert stream(params, 1).random() == stream(params, 1).random()
    assert stream(params, 1).random() != stream(params, 2).random()
    assert stream(params, 1).random() != stream(SamplingParams(seed=4), 1).random()


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0},
        {"top_p": 1.5},
        {"seed": -1},
        {"max_tokens": 0},
        {"min_tokens": 5, "max_tokens": 4},
        {"stop": ("",)},
        {"stop": "end"},
    ],
)
def test_values_out_of_range_are_refused_by_name(options):
    with pytest.raises(InputError, match=next(iter(options))) as error:
        SamplingParams(**options)
    assert error.value.hint


@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.2])
@pytest.mark.parametrize("top_k", [1, 3, 40])
def test_the_best_tokens_alone_give_the_same_distribution_to_the_last_bit(top_k, top_p):
    random = np.random.default_rng(top_k)
    params = SamplingParams(temperature=0.7, top_k=top_k, top_p=top_p)
    for logits in (random.normal(0, 4, 500), random.integers(-3, 4, 500)):
        logits = logits.astype(np.float32)
        best = np.argsort(-logits, kind="stable")[:top_k]
        found = distribution_of_best(best, logits[best], 500, params)
        np.testing.assert_array_equal(found, distribution(logits, params))


def test_best_tokens_that_are_no_numbers_are_refused():
    with pytest.raises(BackendError, match="returned nan as its best logit"):
        distribution_of_best(
            np.array([3, 1]), np.array([np.nan, 1], np.float32), 9, SamplingParams(temperature=1, top_k=2)
        )
