import numpy as np
import pytest

from lineahead.errors import InputError
from lineahead.runtime.drafters import DraftRow, LookupDrafter
from lineahead.runtime.drafters.combined import CombinedDrafter, merged
from lineahead.runtime.drafters.recurrent import RecurrentDrafter
from lineahead.runtime.sampling import SamplingParams
from lineahead.runtime.tree import Tree, chain


class Stepper:
    """Proposes token + 1 with 0.6, token + 50 with 0.3; its guess counts the steps."""

    def __init__(self):
        self.asked = []

    def __call__(self, hidden, tokens):
        self.asked.append((hidden[:, 0].tolist(), tokens.tolist()))
        found = np.stack([tokens + 1, tokens + 50], 1)
        return hidden + 1, found, np.log(np.tile(np.float32([0.6, 0.3]), (len(tokens), 1)))


def question(tokens=(5, 6), hidden=0.0, depth=9, nodes=9, request=0):
    return DraftRow(
        request=request,
        tokens=list(tokens),
        hidden=None if hidden is None else np.array([hidden, 0], np.float32),
        depth=depth,
        nodes=nodes,
        params=SamplingParams(),
        random=np.random.default_rng(0),
    )


def test_the_likeliest_paths_are_kept_parents_first():
    (tree,) = RecurrentDrafter(Stepper(), max_nodes=4, depth=3, least=0.0).propose([question()])
    # 7 (.6), then 8 (.36), 56 (.3), 9 (.216): the next best, 57 below 7, has .18
    assert tree.tokens == (6, 7, 8, 56, 9)
    assert tree.parents == (-1, 0, 1, 0, 2)


def test_each_step_gets_the_guess_and_the_token_before_it():
    stepper = Stepper()
    RecurrentDrafter(stepper, max_nodes=3, depth=3, branches=1, least=0.0).propose([question(hidden=10.0)])
    assert stepper.asked == [([10.0], [6]), ([11.0], [7]), ([12.0], [8])]


def test_no_step_is_made_that_cannot_change_the_tree():
    stepper = Stepper()
    RecurrentDrafter(stepper, max_nodes=1, depth=5, least=0.0).propose([question()])
    assert len(stepper.asked) == 2  # the second shows that nothing below the first node beats it
    stepper.asked.clear()
    (tree,) = RecurrentDrafter(stepper, max_nodes=8, depth=9, least=0.5).propose([question()])
    assert tree.tokens == (6, 7)
    assert len(stepper.asked) == 2


def test_rows_share_a_call_and_keep_their_limits():
    stepper = Stepper()
    drafter = RecurrentDrafter(stepper, max_nodes=4, depth=3, least=0.0)
    trees = drafter.propose([question(), question((1, 30), depth=1, request=1), question(hidden=None)])
    assert [max(tree.depths) for tree in trees] == [3, 1, 0]
    assert stepper.asked[0][1] == [6, 30]
    assert trees[1].tokens == (30, 31, 80)


def test_impossible_sizes_are_refused():
    with pytest.raises(InputError, match="0 nodes"):
        RecurrentDrafter(Stepper(), max_nodes=0)


def test_merging_shares_prefixes_and_keeps_the_budget():
    grown = Tree(tokens=(6, 7, 8), parents=(-1, 0, 1))
    assert merged(chain([6, 7, 9, 4]), grown, 9).tokens == (6, 7, 8, 9, 4)
    assert merged(chain([6, 7, 9, 4]), grown, 9).parents == (-1, 0, 1, 1, 3)
    assert len(merged(chain([6, 7, 9, 4]), grown, 3)) == 4


def test_a_drawn_tree_is_not_merged():
    drawn = Tree(tokens=(6, 7), parents=(-1, 0), draws={0: np.ones(9) / 9})
    assert merged(chain([6, 8]), drawn, 5) is drawn


def test_both_propose_until_lookup_is_trusted_then_lookup_alone():
    stepper = Stepper()
    drafter = CombinedDrafter(LookupDrafter(max_nodes=4), RecurrentDrafter(stepper, max_nodes=4, depth=2))
    text = [1, 2, 3, 4, 1, 2, 3]
    asked = []
    for _ in range(9):
        (tree,) = drafter.propose([question(text)])
        asked.append(len(stepper.asked))
        assert len(tree) <= 5
        assert text[-4] in tree.tokens  # lookup's token, right every time
        text.append(text[-4])
    assert asked[0] > 0
    assert asked[-1] == asked[-2]  # the trained draft is not run any more


def test_where_lookup_finds_nothing_the_trained_draft_has_the_budget():
    drafter = CombinedDrafter(LookupDrafter(), RecurrentDrafter(Stepper(), max_nodes=4, depth=3, least=0.0))
    (tree,) = drafter.propose([question()])
    assert tree.tokens == (6, 7, 8, 56, 9)
    drafter.forget([0])
