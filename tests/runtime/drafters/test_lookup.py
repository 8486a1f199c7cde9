import numpy as np
import pytest

from lineahead.errors import InputError
from lineahead.runtime.drafters import DraftRow, LookupDrafter
from lineahead.runtime.sampling import SamplingParams


def question(tokens, request=0, depth=9, nodes=9):
    return DraftRow(
        request=request,
        tokens=tokens,
        hidden=None,
        depth=depth,
        nodes=nodes,
        params=SamplingParams(),
        random=np.random.default_rng(0),
    )


def naive(tokens, shortest, longest, count):
    """Scan backwards for the longest, then latest, earlier occurrence."""
    for length in range(longest, shortest - 1, -1):
        if length >= len(tokens):
            continue
        for end in range(len(tokens) - 1, length - 1, -1):
            if tokens[end - length : end] == tokens[-length:]:
                return tokens[end : end + count]
    return []


@pytest.mark.parametrize("seed", range(6))
def test_growing_text_against_a_scan(seed):
    random = np.random.default_rng(seed)
    drafter = LookupDrafter(max_nodes=5, shortest=1 + seed % 2, longest=3)
    tokens = random.integers(0, 4, 6).tolist()
    hits = 0
    for _ in range(60):
        (tree,) = drafter.propose([question(tokens)])
        expected = naive(tokens, 1 + seed % 2, 3, 5)
        assert list(tree.tokens) == [tokens[-1], *expected]
        hits += bool(expected)
        tokens.extend(random.integers(0, 4, random.integers(1, 4)).tolist())
    assert hits > 20


def test_limits_and_forgetting():
    drafter = LookupDrafter(max_nodes=8, shortest=2, longest=3)
    text = [1, 2, 3, 4, 5, 1, 2]
    (tree,) = drafter.propose([question(text)])
    assert tree.tokens == (2, 3, 4, 5, 1, 2)
    assert drafter.propose([question(text, depth=2)])[0].tokens == (2, 3, 4)
    assert drafter.propose([question(text, nodes=1)])[0].tokens == (2, 3)
    assert drafter.propose([question(text, depth=0)])[0].tokens == (2,)
    drafter.forget([0])
    assert drafter.propose([question([7, 8, 9, 1, 2])])[0].tokens == (2,)
    assert drafter.propose([question([5])])[0].tokens == (5,)


@pytest.mark.parametrize("options", [{"max_nodes": 0}, {"shortest": 0}, {"shortest": 3, "longest": 2}])
def test_impossible_sizes_are_refused(options):
    with pytest.raises(InputError):
        LookupDrafter(**options)
