"""Prediction and choice of layers, on worths that are known."""

import math

import pytest

from lineahead.convert.planner.predict import Memory, Worth, choose, choose_within, spearman, state_bytes
from lineahead.errors import InputError

WORTH = Worth(
    linear=4.0, softmax=3.0, gains={0: 0.1, 1: 0.3, 2: 0.0, 3: 0.1}, costs={0: 0.2, 1: 0.2, 2: -0.1, 3: 0.1}
)
MEMORY = {layer: Memory(linear=100, per_token=10) for layer in range(4)}


def test_a_prediction_is_exact_at_both_ends_and_falls_between():
    assert WORTH.perplexity(()) == pytest.approx(math.exp(4.0))
    assert WORTH.perplexity(range(4)) == pytest.approx(math.exp(3.0))
    assert sum(WORTH.shares.values()) == pytest.approx(1.0)
    assert WORTH.shares[2] == 0.0, "a layer that does harm is worth nothing, not less"
    assert WORTH.perplexity({1}) == pytest.approx(math.exp(4.0 - (0.6 + 0.4) / 2))


def test_layers_of_no_worth_at_all_share_equally():
    flat = Worth(linear=4.0, softmax=3.0, gains={0: 0.0, 1: -0.1}, costs={0: 0.0, 1: 0.0})
    assert flat.shares == {0: 0.5, 1: 0.5}


def test_the_best_layers_are_chosen():
    assert choose(WORTH, keep=0) == ()
    assert choose(WORTH, keep=1) == (1,)
    assert choose(WORTH, keep=2) == (0, 1)
    with pytest.raises(InputError, match="cannot keep 5 of 4"):
        choose(WORTH, keep=5)


@pytest.mark.parametrize(
    ("limit", "expected"), [(400, ()), (1299, ()), (1300, (1,)), (2200, (0, 1)), (9999, (0, 1, 2, 3))]
)
def test_a_limit_of_memory_is_held(limit, expected):
    found = choose_within(WORTH, MEMORY, limit=limit, context=100)
    assert found == expected
    assert state_bytes(MEMORY, found, 100) <= limit


def test_what_cannot_fit_is_refused():
    with pytest.raises(InputError, match="400 bytes of state, more than 399"):
        choose_within(WORTH, MEMORY, limit=399, context=100)


def test_where_a_cache_is_smaller_than_the_state_layers_are_kept_for_nothing():
    found = choose_within(WORTH, MEMORY, limit=400, context=5)
    assert found == (0, 1, 2, 3)


def test_ranks():
    assert spearman([1, 2, 3], [10, 20, 40]) == pytest.approx(1.0)
    assert spearman([1, 2, 3], [4, 2, 1]) == pytest.approx(-1.0)
