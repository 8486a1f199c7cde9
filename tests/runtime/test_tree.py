import itertools

import numpy as np
import pytest

from lineahead.errors import InputError
from lineahead.runtime.tree import (
    Tree,
    ancestors,
    best_nodes,
    by_rank,
    chain,
    children,
    depths,
    from_paths,
    root,
)


def test_masks_depths_and_children():
    parents = (-1, 0, 0, 1, 1, 4, 2)
    mask = ancestors(parents)
    for node in range(7):
        path, one = set(), node
        while one >= 0:
            path.add(one)
            one = parents[one]
        assert set(np.flatnonzero(mask[node])) == path
        assert depths(parents)[node] == len(path) - 1
    assert children(parents)[1] == (3, 4)
    assert (ancestors(chain([1, 2, 3]).parents) == np.tri(3, dtype=bool)).all()
    assert not mask.flags.writeable


@pytest.mark.parametrize("parents", [(), (0,), (-1, 1), (-1, -1), (-1, 2, 0)])
def test_what_is_not_a_tree_is_refused(parents):
    with pytest.raises(InputError):
        Tree(tokens=(5,) * max(len(parents), 1), parents=parents)


def test_shared_prefixes_become_shared_nodes():
    tree = from_paths(9, [(1, 2, 3), (1, 2, 4), (5,), (1,)])
    assert tree.tokens == (9, 1, 2, 3, 4, 5)
    assert tree.parents == (-1, 0, 1, 2, 2, 0)


def test_pruning_keeps_a_tree():
    q = np.array([0.5, 0.5])
    tree = Tree(tokens=tuple(range(7)), parents=(-1, 0, 1, 2, 0, 4, 2), draws={0: q, 2: q, 4: q})
    assert tree.pruned(depth=9, nodes=9) is tree
    shallow = tree.pruned(depth=2, nodes=7)
    assert (shallow.tokens, shallow.parents) == ((0, 1, 2, 4, 5), (-1, 0, 1, 0, 3))
    assert sorted(shallow.draws) == [0, 2, 3]
    assert tree.pruned(depth=9, nodes=3).parents == (-1, 0, 1)
    assert tree.pruned(depth=0, nodes=7) == Tree(tokens=(0,), parents=(-1,), draws={0: q})
    assert len(root(3)) == 1


def expected_tokens(log_probs, nodes):
    """Sum of the path probabilities of the given (rank, ...) paths."""
    return sum(np.exp(sum(log_probs[d, rank] for d, rank in enumerate(path))) for path in nodes)


@pytest.mark.parametrize("seed", range(5))
def test_best_nodes_are_the_best_subtree(seed):
    random = np.random.default_rng(seed)
    log_probs = np.log(np.sort(random.dirichlet(np.ones(4), size=3))[:, ::-1][:, :3])
    shape = best_nodes(log_probs, 6)
    paths = [()]
    for parent, head, rank in shape:
        assert len(paths[parent]) == head
        paths.append((*paths[parent], rank))
    every = [path for depth in (1, 2, 3) for path in itertools.product(range(3), repeat=depth)]
    best = sorted((expected_tokens(log_probs, [path]) for path in every), reverse=True)[:6]
    assert expected_tokens(log_probs, paths[1:]) == pytest.approx(sum(best))
    assert len(set(paths)) == 7


def test_best_nodes_end_with_the_candidates():
    log_probs = np.array([[-0.1, -np.inf], [-0.2, -np.inf]])
    assert best_nodes(log_probs, 10) == [(0, 0, 0), (1, 1, 0)]
    assert best_nodes(np.zeros((0, 3)), 4) == []
    tree = by_rank(7, np.array([[1, 2], [3, 4]]), best_nodes(log_probs, 10))
    assert (tree.tokens, tree.parents) == ((7, 1, 3), (-1, 0, 1))
