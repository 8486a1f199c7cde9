import json

import pytest

from lineahead.runtime.statistics import Statistics
from lineahead.runtime.tree import chain, from_paths, root


def test_counts():
    stats = Statistics()
    stats.record(chain([0, 1, 2, 3]), 2, 3)
    stats.record(from_paths(0, [(1, 2), (3,)]), 1, 2)
    stats.record(root(0), 0, 1)
    assert stats.tokens_per_step == 2
    assert stats.accepted_per_step == 1
    assert stats.offered_at == [2, 2, 1]
    assert stats.accepted_at == [2, 1, 0]
    assert stats.acceptance_rates == [1, 0.5, 0]
    assert (stats.proposed, stats.accepted) == (6, 3)


def test_nothing_measured_is_null_in_json():
    data = Statistics().as_dict()
    assert json.loads(json.dumps(data, allow_nan=False))["tokens_per_step"] is None


def test_the_times_add_up(toy):
    _, run = toy.decode(toy.Session(), [toy.row(0, [1, 2, 3])])
    stats = run.decoder.statistics
    data = stats.as_dict()
    assert sum(data["time_s"].values()) == pytest.approx(data["decode_s"])
    assert data["time_s"]["commit"] == 0
    assert data["prompt_tokens"] == 3
    assert data["tokens"] == 40
    assert data["steps"] == 39
    assert 0 < data["ttft_s"] < 10
    assert min(data["time_s"].values()) >= 0
