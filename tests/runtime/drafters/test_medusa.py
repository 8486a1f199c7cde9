import numpy as np
import pytest

from lineahead.errors import InputError
from lineahead.runtime.drafters import DraftRow
from lineahead.runtime.drafters.medusa import MedusaDrafter
from lineahead.runtime.sampling import SamplingParams

TOKENS = np.array([[10, 11, 12], [20, 21, 22], [30, 31, 32]])
LOG_PROBS = np.log(np.array([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.9, 0.05, 0.05]])).astype(np.float32)


class Heads:
    """Three heads with three candidates; the hidden state's first number is added to the tokens."""

    def __init__(self):
        self.asked = []

    def __call__(self, hidden):
        self.asked.append(hidden.shape)
        return TOKENS + hidden[:, 0].astype(int)[:, None, None] * 100, np.repeat(
            LOG_PROBS[None], len(hidden), 0
        )


def question(hidden, depth=9, nodes=9):
    return DraftRow(
        request=0,
        tokens=[5, 6],
        hidden=None if hidden is None else np.array([hidden, 0], np.float32),
        depth=depth,
        nodes=nodes,
        params=SamplingParams(),
        random=np.random.default_rng(0),
    )


def test_adaptive_trees_take_the_likeliest_nodes():
    heads = Heads()
    drafter = MedusaDrafter(heads, max_nodes=5)
    first, none, second = drafter.propose([question(0), question(None), question(1, depth=1)])
    assert heads.asked == [(2, 2)]
    assert none.tokens == (6,)
    assert first.parents == (-1, 0, 0, 1, 3, 1) or first.parents == (-1, 0, 1, 2, 0, 1)
    assert set(first.tokens) == {6, 10, 11, 20, 21, 30}
    assert second.tokens == (6, 110, 111, 112)
    assert second.parents == (-1, 0, 0, 0)


def test_chains_and_fixed_trees():
    (tree,) = MedusaDrafter(Heads(), max_nodes=2, shape="chain").propose([question(0)])
    assert (tree.tokens, tree.parents) == ((6, 10, 20), (-1, 0, 1))
    (tree,) = MedusaDrafter(Heads(), shape="chain").propose([question(0)])
    assert tree.tokens == (6, 10, 20, 30)
    fixed = MedusaDrafter(Heads(), shape=((0, 0, 0), (0, 0, 1), (1, 1, 0), (3, 2, 2)))
    assert fixed.propose([question(0)])[0].tokens == (6, 10, 11, 20, 32)
    assert fixed.propose([question(0, depth=2)])[0].tokens == (6, 10, 11, 20)
    assert fixed.propose([question(0, nodes=1)])[0].tokens == (6, 10)


def test_calibration_changes_the_choice():
    doubt = np.zeros((3, 3))
    doubt[1:] = -9
    (tree,) = MedusaDrafter(Heads(), max_nodes=3, calibration=doubt).propose([question(0)])
    assert tree.tokens == (6, 10, 11, 12)


def test_no_nodes_is_refused():
    with pytest.raises(InputError):
        MedusaDrafter(Heads(), max_nodes=0)
