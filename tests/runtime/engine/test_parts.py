"""The queue, the cache and the governor by themselves."""

from types import SimpleNamespace

import numpy as np

from lineahead.runtime.engine.batch_governor import BatchGovernor
from lineahead.runtime.engine.fair_queue import FairQueue
from lineahead.runtime.engine.prefix_cache import PrefixCache
from lineahead.runtime.session import RowState
from lineahead.runtime.tree import chain


def item(key, name=0):
    return SimpleNamespace(key=key, name=name, done=False)


def test_keys_take_turns_by_service_and_wait_in_order_within():
    queue = FairQueue()
    for name in range(3):
        queue.push(item("a", name))
    for name in range(3):
        queue.push(item("b", name))
    order = []
    while len(queue):
        one = queue.pop()
        queue.charge(one.key, 10 if one.key == "a" else 4)
        order.append((one.key, one.name))
    assert [name for key, name in order if key == "a"] == [0, 1, 2]
    assert [key for key, _ in order] == ["a", "b", "b", "b", "a", "a"]
    assert queue.pop() is None


def test_nobody_saves_up_a_claim_while_away():
    queue = FairQueue()
    for name in range(40):
        queue.push(item("busy", name))
    for _ in range(20):
        queue.charge(queue.pop().key, 100)
    for name in range(20):
        queue.push(item("late", name))
    served = []
    for _ in range(20):
        one = queue.pop()
        queue.charge(one.key, 100)
        served.append(one.key)
    assert 8 <= served.count("late") <= 12


def test_what_is_done_is_passed_over_and_not_counted():
    queue = FairQueue()
    items = [item("a", name) for name in range(4)]
    for one in items:
        queue.push(one)
    for one in items[:3]:
        one.done = True
        queue.discard()
    assert len(queue) == 1
    assert [one.name for one in queue] == [3]
    assert queue.pop().name == 3
    assert queue.pop() is None


def state(length, size):
    return RowState(length=length, state={"x": np.zeros(size, np.uint8)})


def test_the_cache_keeps_shared_and_last_boundaries_within_its_budget():
    cache = PrefixCache(250, grain=4)
    system = list(range(9))
    first = cache.boundaries([*system, 50, 51, 52, 53, 54], "")
    assert list(first) == [4, 8, 12]
    assert list(cache.wanted(first)) == [12]
    cache.put(first[12], state(12, 100))
    second = cache.boundaries([*system, 60, 61, 62, 63, 64], "")
    assert first[8] == second[8]
    assert first[12] != second[12]
    assert cache.find(second) is None
    assert sorted(cache.wanted(second)) == [8, 12]
    cache.put(second[8], state(8, 100))
    third = cache.boundaries([*system, 70, 71], "")
    assert cache.find(third).length == 8
    cache.put(b"more", state(4, 100))
    assert cache.statistics.nbytes == 200
    assert cache.statistics.evicted == 1
    assert cache.find({12: first[12]}) is None, "the least recently used goes"
    cache.put(b"huge", state(4, 300))
    assert cache.statistics.entries == 2
    assert cache.boundaries(system, "other")[8] != second[8]
    assert PrefixCache(0, grain=4).boundaries(system, "") == {}
    assert list(cache.boundaries(list(range(8)), "")) == [4], "one token is left to read"


def test_drafts_stop_where_the_batch_makes_them_lose():
    """One row: three nodes cost little. Sixteen rows: every node costs as much as a step."""
    governor = BatchGovernor(4)
    tree = chain([1, 2, 3, 4, 5])

    def step(batch, per_node):
        nodes = governor.nodes(batch)
        for _ in range(batch):
            governor.observe(tree.pruned(depth=nodes, nodes=nodes + 1), min(nodes, 1))
        governor.timed(1 + nodes, 0.0, 1.0 + per_node * nodes)
        return nodes

    for _ in range(400):
        step(1, 0.1)
        step(16, 1.0)
    alone = [step(1, 0.1) for _ in range(100)]
    crowded = [step(16, 1.0) for _ in range(100)]
    assert np.mean(np.array(alone) > 0) > 0.8
    assert np.mean(np.array(crowded) > 0) < 0.1


def test_rows_that_propose_nothing_pay_for_those_that_do():
    """Every other row gets all of its draft: of the batch's mean, one node gains 15 %, four lose."""
    governor, cost = BatchGovernor(4), {0: 1.0, 1: 1.3, 2: 2.0, 3: 2.6, 4: 3.1}
    spent = tokens = 0.0
    for _ in range(2000):
        nodes = governor.nodes(16)
        for row in range(16):
            found = nodes if row % 2 else 0
            governor.observe(chain(range(1 + found)), found)
        governor.timed(1 + nodes, 0.0, cost[nodes])
        spent += cost[nodes]
        tokens += 1 + nodes / 2
    assert tokens / spent > 1.1
