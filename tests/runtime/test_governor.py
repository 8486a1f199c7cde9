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


def tokens_per_plain_step(governor, *, rate, per_node, draft, found, tokens, seed):
    """As :func:`simulate`: a drafter that finds something in `found` of the steps, one step in 100 disturbed.

    Without a governor it is asked for 5 nodes in every step.
    """
    random = np.random.default_rng(seed)
    time, made = 0.0, 0
    while made < tokens:
        wanted = 5 if governor is None else governor.nodes(1)
        nodes = wanted if random.random() < found else 0
        accepted = 0
        while accepted < nodes and random.random() < rate:
            accepted += 1
        cost = (1 + per_node * nodes) * random.uniform(0.95, 1.05) * (3 if random.random() < 0.01 else 1)
        if governor is not None:
            governor.observe(chain(range(nodes + 1)), accepted)
            governor.timed(nodes + 1, draft * nodes, cost)
        time += cost + draft * nodes
        made += accepted + 1
    return made / time


@pytest.mark.parametrize(
    ("rate", "per_node", "draft", "found"),
    [
        pytest.param(0.0, 0.02, 0.0, 0.5, id="lookup, useless"),
        pytest.param(0.6, 0.02, 0.0, 0.3, id="lookup, at times"),
        pytest.param(0.8, 0.02, 0.0, 0.6, id="lookup, mostly"),
        pytest.param(0.3, 0.25, 0.02, 1.0, id="heads, dear to verify"),
        pytest.param(0.5, 0.03, 0.02, 1.0, id="heads, cheap to verify"),
        pytest.param(0.5, 0.03, 0.3, 1.0, id="model, another"),
        pytest.param(0.9, 0.03, 0.3, 1.0, id="model, nearly the same"),
    ],
)
def test_hardly_slower_than_plain_decoding_and_than_always_proposing(rate, per_node, draft, found):
    clock = {"rate": rate, "per_node": per_node, "draft": draft, "found": found, "tokens": 2000}
    plain, always, governed = [], [], []
    for seed in range(20):
        plain.append(tokens_per_plain_step(Governor(0), seed=seed, **{**clock, "found": 0.0}))
        always.append(tokens_per_plain_step(None, seed=seed, **clock))
        governed.append(tokens_per_plain_step(Governor(5), seed=seed, **clock))
    assert np.mean(governed) > 0.97 * max(np.mean(plain), np.mean(always))


def test_a_paying_drafter_is_used_from_the_third_step_on():
    governor, used = Governor(5), []
    for _ in range(8):
        used.append(governor.nodes(1))
        governor.observe(chain(range(used[-1] + 1)), used[-1])
        governor.timed(used[-1] + 1, 0.0, 1 + 0.02 * used[-1])
    assert used == [0, 1, *[5] * 6]


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
