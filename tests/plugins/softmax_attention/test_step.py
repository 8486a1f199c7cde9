"""The step form of softmax attention against a loop over nodes and keys in float64."""

import math

import pytest
import torch

from lineahead.plugins.softmax_attention.schema import GRAIN, CacheSettings, capacity
from lineahead.plugins.softmax_attention.step import cache_step

SETTINGS = [
    CacheSettings(),
    CacheSettings(pattern="sliding", window=5),
    CacheSettings(pattern="grouped", window=4),
]
TREE = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]


def reference(query, keys, values, positions, settings, scale, softcap, sink):
    """One query at ``positions[-1]`` over the keys of its path, itself last."""
    at, weights, total, out = positions[-1], [], 0.0, torch.zeros_like(values[0])
    for key, position in zip(keys, positions, strict=True):
        seen = {
            "whole": True,
            "sliding": at - position < max(settings.window, 1),
            "grouped": at // max(settings.window, 1) == position // max(settings.window, 1),
        }[settings.pattern]
        score = float(query @ key) * scale
        score = score if softcap is None else softcap * math.tanh(score / softcap)
        weights.append(math.exp(score) if seen else 0.0)
    total = sum(weights) + (0.0 if sink is None else math.exp(sink))
    for weight, value in zip(weights, values, strict=True):
        out = out + weight / total * value
    return out


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda one: one.pattern)
def test_equals_a_loop(settings, sinks, softcap):
    torch.manual_seed(0)
    batch, heads, shared, dim, wide, rows = 2, 4, 2, 6, 3, 16
    length, count, index = torch.tensor([7, 4]), torch.tensor([2, 0]), torch.tensor([[0, 2], [1, 1]])
    past_key, past_value = torch.randn(batch, shared, rows, dim), torch.randn(batch, shared, rows, wide)
    past_key[0, :, 7:], past_value[1, :, 4:] = 1e3, -1e3  # garbage that nobody may read
    past_value[0, :, 7:], past_key[1, :, 4:] = 1e3, -1e3
    pending = torch.randn(batch, shared, 3, dim), torch.randn(batch, shared, 3, wide)
    query, key = torch.randn(batch, heads, 4, dim), torch.randn(batch, shared, 4, dim)
    value, sink = torch.randn(batch, shared, 4, wide), torch.randn(heads)
    tree = torch.tensor(TREE).bool().repeat(batch, 1, 1)
    before = past_key.clone(), past_value.clone()
    out, new_key, new_value = cache_step(
        query, key, value, tree, length, index, count, past_key, past_value, *pending,
        settings=settings, scale=0.4, softcap=softcap, sinks=sink if sinks else None,
    )  # fmt: skip
    assert torch.equal(past_key, before[0])
    assert torch.equal(past_value, before[1])
    for b in range(batch):
        rows_taken = index[b, : count[b]]
        text_key = torch.cat([past_key[b, :, : length[b]], pending[0][b, :, rows_taken]], 1)
        text_value = torch.cat([past_value[b, :, : length[b]], pending[1][b, :, rows_taken]], 1)
        total = text_key.shape[1]
        assert torch.equal(new_key[b, :, :total], text_key)
        assert torch.equal(new_value[b, :, :total], text_value)
        for head in range(heads):
            group = head // (heads // shared)
            for node in range(4):
                path = [i for i in range(4) if TREE[node][i]]
                keys = [*text_key[group], *(key[b, group, i] for i in path)]
                values = [*text_value[group], *(value[b, group, i] for i in path)]
                want = reference(
                    query[b, head, node].double(),
                    [one.double() for one in keys],
                    [one.double() for one in values],
                    [*range(total + len(path))],
                    settings,
                    0.4,
                    softcap,
                    float(sink[head]) if sinks else None,
                )
                torch.testing.assert_close(out[b, head, node].double(), want, atol=1e-5, rtol=1e-5)


def test_capacity_is_a_multiple_of_the_grain():
    assert [capacity(rows) for rows in (0, 1, GRAIN, GRAIN + 1)] == [GRAIN, GRAIN, GRAIN, 2 * GRAIN]
