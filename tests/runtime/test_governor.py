import numpy as np
import pytest

from lineahead.runtime.drafters.recorded import RecordedDrafter
from lineahead.runtime.governor import SIZES, Governor, measure
from lineahead.runtime.tree import chain


def simulate(governor, *, rate, per_node, draft=0.0, steps=3000, noise=0.05, seed=0):
    """A chain drafter whose tokens are right with probability `rate`; a step costs 1 + per_node per node.

    Returns speed relative to plain decoding, and the sizes used in the last third.
    """
    random = np.random.default_rng(seed)
    time, tokens, used = 0.0, 0, []
    for step in range(steps):
        nodes = governor.nodes(1)
        accepted = 0
        while accepted < nodes and random.random() < rate:
            accepted += 1
        cost = (1 + per_node * nodes) * random.uniform(1 - noise, 1 + noise) * 1e-3
        spent = draft * 1e-3 if nodes else 0.0
        governor.observe(chain(range(nodes + 1)), accepted)
        governor.timed(nodes + 1, spent, cost)
        time += cost + spent
        tokens += accepted + 1
        if step > steps * 2 // 3:
            used.append(nodes)
    return tokens / (time / 1e-3), used


def best(rate, per_node, draft, sizes):
    speeds = {0: 1.0}
    for nodes in sizes:
        speeds[nodes] = sum(rate**i for i in range(nodes + 1)) / (1 + per_node * nodes + draft)
    return max(speeds.values())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("rate", "per_node"), [(0.0, 0.1), (0.1, 0.1), (0.0, 0.5), (0.1, 0.5), (0.3, 0.5), (0.0, 2.0), (0.3, 2.0)]
)
def test_a_useless_drafter_costs_at_most_three_percent(rate, per_node, seed):
    assert best(rate, per_node, 0.1, range(1, 9)) == 1
    for steps in (100, 1000, 3000):
        speed, _ = simulate(
            Governor(8), rate=rate, per_node=per_node, draft=0.1, seed=seed, steps=steps, noise=0
        )
        assert speed > 0.97


@pytest.mark.parametrize(("rate", "per_node"), [(0.8, 0.05), (0.9, 0.1), (0.6, 0.05), (0.7, 0.02)])
def test_a_good_drafter_is_used_near_its_best_length(rate, per_node):
    reachable = best(rate, per_node, 0.0, [size for size in SIZES if size <= 16])
    speed, used = simulate(Governor(16), rate=rate, per_node=per_node)
    assert speed > 0.88 * reachable
    assert np.mean(used) > 1


def test_it_does_not_change_the_text(toy):
    plain, _ = toy.decode(toy.Session(), [toy.row(0, [1, 2, 3])])
    drafter = RecordedDrafter(plain, vocab_size=13, depth=6)
    found, _ = toy.decode(toy.Session(), [toy.row(0, [1, 2, 3])], drafter, governor=Governor(6))
    assert found == plain


def test_without_a_drafter_nothing_is_proposed():
    assert Governor(0).nodes(1) == 0


def test_measured_costs_are_medians_of_interleaved_calls():
    calls = []

    def call(nodes):
        calls.append(nodes)
        return nodes * (100.0 if len(calls) < 4 else 1.0)

    cost = measure(call, sizes=(1, 2, 4), repeats=3)
    assert calls == [1, 2, 4] * 4
    assert cost.seconds == {1: 1, 2: 2, 4: 4}
    assert cost.needed_acceptance(4) == cost.ratio(4) == 4
