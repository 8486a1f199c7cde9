"""The emitted distribution equals the target's. Every test says what it would take to fail: see `power`."""

import functools
import math

import numpy as np
import pytest

from lineahead.errors import InputError
from lineahead.runtime import acceptance
from lineahead.runtime.acceptance import greedy, lossless, sampling, typical
from lineahead.runtime.sampling import SamplingParams, distribution, draw
from lineahead.runtime.tree import Tree, chain, from_paths

VOCAB, SAMPLES = 6, 20_000
PARAMS = SamplingParams(temperature=0.9, top_k=5, top_p=0.95)


@functools.cache
def target_distribution(path, seed, params):
    """The same few are asked for again and again."""
    return distribution(target_logits(path, seed), params)


class Target:
    """Logits that depend on the path from the root, so that first and second tokens are correlated."""

    def __init__(self, tree, seed=0):
        self.tree, self.seed = tree, seed

    def path(self, node):
        tokens = []
        while node > 0:
            tokens.insert(0, self.tree.tokens[node])
            node = self.tree.parents[node]
        return tuple(tokens)

    def distribution(self, node, params):
        return target_distribution(self.path(node), self.seed, params)

    def argmax(self, node):
        return int(target_logits(self.path(node), self.seed).argmax())


@functools.cache
def target_logits(path, seed=0):
    return np.random.default_rng([seed, len(path), *path]).normal(size=VOCAB).astype(np.float32) * 1.5


@functools.cache
def draft_distribution(path, params):
    """A draft that knows something: the target's logits, disturbed."""
    noise = np.random.default_rng([7, *path]).normal(size=VOCAB)
    return distribution(target_logits(path) + noise, params)


def expected(params, length=2):
    """Exact probabilities of the first `length` tokens."""
    table = {(): 1.0}
    for _ in range(length):
        table = {
            (*path, token): mass * p
            for path, mass in table.items()
            for token, p in enumerate(distribution(target_logits(path), params))
            if p > 0
        }
    return table


def emitted(make_tree, params, accept=sampling, length=2, samples=SAMPLES, seed=0):
    """Counts of the first `length` tokens; what a step leaves open, plain draws from the target complete."""
    random = np.random.default_rng(seed)
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(samples):
        tree = make_tree(random)
        tokens = accept(tree, Target(tree), params, random).tokens(tree)[:length]
        while len(tokens) < length:
            p = target_distribution(tuple(tokens), 0, params)
            tokens.append(draw(p, random.random()))
        key = tuple(tokens)
        counts[key] = counts.get(key, 0) + 1
    return counts


def g_test(counts, table):
    """p-value of the G-test by Wilson and Hilferty's approximation; 0 when the impossible was seen."""
    if set(counts) - set(table):
        return 0.0
    total = sum(counts.values())
    g = 2 * sum(n * math.log(n / (total * table[key])) for key, n in counts.items())
    k = len(table) - 1
    z = ((max(g, 0) / k) ** (1 / 3) - (1 - 2 / (9 * k))) / math.sqrt(2 / (9 * k))
    return 0.5 * math.erfc(z / math.sqrt(2))


def drawn_chain(random, params=PARAMS, draft_params=None):
    """Two tokens drawn from the draft."""
    tokens, draws = [0], {}
    for node in range(2):
        q = draft_distribution(tuple(tokens[1:]), draft_params or params)
        draws[node] = q
        tokens.append(draw(q, random.random()))
    return Tree(tokens=tuple(tokens), parents=(-1, 0, 1), draws=draws)


def drawn_tree(random, replacement=True):
    """Three siblings drawn from the draft, each with two drawn children."""
    tokens, parents, draws = [0], [-1], {}

    def grow(node, path, width):
        q = draws[node] = draft_distribution(path, PARAMS)
        left = q.copy()
        for _ in range(width):
            if left.sum() <= 0:
                return
            token = draw(left / left.sum(), random.random())
            if not replacement:
                left[token] = 0
            parents.append(node)
            tokens.append(token)

    grow(0, (), 3)
    for node in range(1, len(tokens)):
        grow(node, (tokens[node],), 2)
    return Tree(tokens=tuple(tokens), parents=tuple(parents), draws=draws, replacement=replacement)


def chosen_chain(random):
    return chain([0, 1, 4])


def chosen_tree(random):
    return from_paths(0, [(1, 2), (1, 4), (3, 0), (5,), (2, 2)])


TREES = {
    "chain, chosen": chosen_chain,
    "tree, chosen": chosen_tree,
    "chain, drawn": drawn_chain,
    "tree, drawn with replacement": drawn_tree,
    "tree, drawn without": lambda random: drawn_tree(random, replacement=False),
}


@pytest.mark.parametrize("name", TREES)
def test_emitted_tokens_are_distributed_like_the_targets(name):
    """Two tokens, 20,000 samples: passes with probability 0.999 when exact; seeded, so always alike."""
    assert g_test(emitted(TREES[name], PARAMS), expected(PARAMS)) > 1e-3


@pytest.mark.parametrize(
    "params", [SamplingParams(temperature=1.5), SamplingParams(temperature=0.6, top_p=0.7)]
)
def test_other_parameters(params):
    counts = emitted(lambda random: drawn_chain(random, params), params)
    assert g_test(counts, expected(params)) > 1e-3


def test_accepting_is_worth_something():
    random = np.random.default_rng(0)
    trees = [drawn_tree(random) for _ in range(500)]
    paths = [sampling(tree, Target(tree), PARAMS, random).path for tree in trees]
    assert np.mean([len(path) for path in paths]) > 0.9


def power(shift):
    """Chance of noticing a first token that is off by `shift` in total variation (a simulation)."""
    table = expected(PARAMS)
    keys = list(table)
    wrong = np.array([table[key] for key in keys])
    first = np.array([key[0] for key in keys])
    best = int(np.bincount(first, wrong).argmax())
    wrong = wrong * np.where(first == best, 1 - shift / wrong[first == best].sum(), 1)
    wrong[first != best] *= 1 + shift / wrong[first != best].sum()
    random = np.random.default_rng(1)
    found = 0
    for _ in range(100):
        counts = random.multinomial(SAMPLES, wrong / wrong.sum())
        found += g_test({k: int(n) for k, n in zip(keys, counts, strict=True) if n}, table) < 1e-3
    return found / 100


def test_the_test_notices_three_percent():
    assert power(0.03) > 0.95


MUTANTS = {
    "residual is p": ("_residual", lambda target, draft: target),
    "residual not clipped": (
        "_residual",
        lambda target, draft: np.abs(target - draft) / np.abs(target - draft).sum(),
    ),
    "residual of q": ("_residual", lambda target, draft: draft),
}


@pytest.mark.parametrize("name", MUTANTS)
@pytest.mark.parametrize("tree", ["chain, drawn", "tree, drawn with replacement"])
def test_a_wrong_residual_is_noticed(monkeypatch, name, tree):
    monkeypatch.setattr(acceptance, *MUTANTS[name])
    assert g_test(emitted(TREES[tree], PARAMS, samples=6000), expected(PARAMS)) < 1e-6


def test_a_draft_distribution_without_truncation_is_noticed():
    """The tokens come from the truncated draft, acceptance is told the full one (and the reverse)."""
    free = SamplingParams(temperature=0.9)

    def full_q(random):
        tree = drawn_chain(random)
        draws = {0: draft_distribution((), free), 1: draft_distribution((tree.tokens[1],), free)}
        return Tree(tokens=tree.tokens, parents=tree.parents, draws=draws)

    assert g_test(emitted(full_q, PARAMS, samples=6000), expected(PARAMS)) < 1e-6

    def full_tokens(random):
        tree = drawn_chain(random, free)
        draws = {0: draft_distribution((), PARAMS), 1: draft_distribution((tree.tokens[1],), PARAMS)}
        return Tree(tokens=tree.tokens, parents=tree.parents, draws=draws)

    with pytest.raises(InputError, match="no probability"):
        emitted(full_tokens, PARAMS)


def test_siblings_without_replacement_treated_as_with_are_noticed():
    def wrong(random):
        tree = drawn_tree(random, replacement=False)
        return Tree(tokens=tree.tokens, parents=tree.parents, draws=tree.draws)

    assert g_test(emitted(wrong, PARAMS), expected(PARAMS)) < 1e-4


def test_typical_is_lossy():
    assert g_test(emitted(chosen_tree, PARAMS, accept=typical()), expected(PARAMS)) < 1e-6
    assert "LOSSY" in (typical.__doc__ or "")


def test_greedy_takes_the_longest_path_of_best_tokens():
    best = [int(target_logits(()).argmax())]
    for _ in range(3):
        best.append(int(target_logits(tuple(best)).argmax()))
    tree = from_paths(
        0, [(best[0], (best[1] + 1) % VOCAB), best[:2], [(best[0] + 1) % VOCAB, best[1], best[2]]]
    )
    accepted = greedy(tree, Target(tree), SamplingParams(), np.random.default_rng(0))
    assert accepted.tokens(tree) == best[:3]
    assert lossless(tree, Target(tree), SamplingParams(), np.random.default_rng(0)) == accepted
    wrong = chain([0, (best[0] + 1) % VOCAB])
    assert greedy(wrong, Target(wrong), SamplingParams(), np.random.default_rng(0)).tokens(wrong) == best[:1]


@pytest.mark.parametrize("make", [chosen_chain, chosen_tree])
def test_chosen_proposals_use_one_random_number_per_token(make):
    """So that a seed gives the same text with and without them."""
    tree = make(None)
    for seed in range(200):
        random = np.random.default_rng(seed)
        accepted = sampling(tree, Target(tree), PARAMS, random)
        uniforms = np.random.default_rng(seed)
        text: list[int] = []
        for token in accepted.tokens(tree):
            text.append(draw(distribution(target_logits(tuple(text)), PARAMS), uniforms.random()))
            assert text[-1] == token
        assert random.random() == uniforms.random()
