"""The constant-size cache layer: rollback, reordering, size."""

import random

import pytest
import torch
from torch.testing import assert_close
from transformers.cache_utils import DynamicCache

from lineahead.errors import InputError
from lineahead.plugins.augmented_attention.huggingface.cache import CHUNK, UNDO, StateLayer
from lineahead.plugins.augmented_attention.huggingface.fixed_layer import CACHE


@pytest.fixture
def feed():
    """Feeds tokens to a model with a cache, and returns their logits."""

    @torch.no_grad()
    def run(model, cache, ids, **inputs):
        return model(input_ids=ids, **{CACHE: cache}, use_cache=True, **inputs).logits

    return run


def close(actual, expected):
    assert_close(actual, expected, rtol=0, atol=2e-5)


def test_random_rejections_leave_no_trace(settings, linear_model, tokens, full_pass, feed):
    model, pick = linear_model(settings), random.Random(0)
    cache, text = DynamicCache(), torch.zeros(2, 0, dtype=torch.long)
    for round_ in range(40):
        proposed = tokens(2, pick.randint(1, 9), seed=round_)
        logits = feed(model, cache, proposed)
        whole = torch.cat([text, proposed], 1)
        close(logits, full_pass(model, whole)[:, text.shape[1] :])
        rejected = pick.randint(0, proposed.shape[1])
        cache.crop(-rejected)
        text = whole[:, : whole.shape[1] - rejected]
        assert cache.get_seq_length() == text.shape[1]


def test_state_after_rejections_is_the_state_of_the_accepted_tokens(settings, linear_model, tokens, feed):
    model, ids = linear_model(settings), tokens(1, 150)
    direct, rolled = DynamicCache(), DynamicCache()
    for start in range(0, 150, 10):
        feed(model, direct, ids[:, start : start + 10])
        feed(model, rolled, torch.cat([ids[:, start : start + 10], tokens(1, 7, seed=start)], 1))
        rolled.crop(-7)
    probe = tokens(1, 1, seed=1)
    for cache in (direct, rolled):
        feed(model, cache, probe)  # commits
    for one, other in zip(direct.layers, rolled.layers, strict=True):
        for name in settings.state_ports:
            close(one._held.tensors[name], other._held.tensors[name])


def test_a_long_prompt_can_be_cut_back_by_one_chunk(settings, linear_model, tokens, full_pass, feed):
    model, ids, cache = linear_model(settings), tokens(1, CHUNK + 60), DynamicCache()
    feed(model, cache, ids)
    cache.crop(-CHUNK)
    close(feed(model, cache, ids[:, 60:80]), full_pass(model, ids[:, :80])[:, 60:])
    with pytest.raises(InputError, match="20 tokens are uncommitted"):
        cache.crop(-21)


def test_recording_undoes_whole_calls(settings, linear_model, tokens, full_pass, feed):
    model, ids, cache = linear_model(settings), tokens(1, 60), DynamicCache()
    feed(model, cache, ids[:, :30])
    cache.activate_past_recording()
    for position in range(30, 50):
        feed(model, cache, ids[:, position : position + 1])
    cache.crop(-15)
    assert cache.get_seq_length() == 35
    close(feed(model, cache, ids[:, 35:60]), full_pass(model, ids)[:, 35:])


def test_crop_to_a_length_as_older_transformers_ask(settings, linear_model, tokens, full_pass, feed):
    model, ids, cache = linear_model(settings), tokens(1, 60), DynamicCache()
    feed(model, cache, ids[:, :40])
    layer = cache.layers[0]
    for one in cache.layers:
        one.crop(99)  # no more than there is
        one.crop(35)
    assert layer.get_seq_length() == 35
    close(feed(model, cache, ids[:, 35:]), full_pass(model, ids)[:, 35:])


def test_padding_can_be_rolled_back_over(settings, linear_model, tokens, full_pass, feed):
    model, ids, cache = linear_model(settings), tokens(2, 40), DynamicCache()
    mask = torch.ones(2, 40, dtype=torch.long)
    mask[0, :11] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    feed(model, cache, ids, attention_mask=mask, position_ids=positions)
    cache.crop(-6)
    next_mask = torch.ones(2, 38, dtype=torch.long)
    next_mask[0, :11] = 0
    more = tokens(2, 4, seed=5)
    next_positions = (next_mask.cumsum(-1) - 1)[:, -4:]
    logits = feed(model, cache, more, attention_mask=next_mask, position_ids=next_positions)
    for row, start in enumerate((11, 0)):
        text = torch.cat([ids[row : row + 1, start:34], more[row : row + 1]], 1)
        close(logits[row], full_pass(model, text)[0, -4:])


def test_rows_move(settings, linear_model, tokens, full_pass, feed):
    model, ids, cache = linear_model(settings), tokens(3, 70), DynamicCache()
    feed(model, cache, ids)
    for move, rows in (
        (lambda: cache.reorder_cache(torch.tensor([2, 0, 0])), [2, 0, 0]),
        (lambda: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
        (lambda: cache.batch_select_indices(torch.tensor([5, 1])), [5, 1]),
    ):
        move()
        ids = ids[rows]
        more = tokens(ids.shape[0], 3, seed=len(rows))
        logits, ids = feed(model, cache, more), torch.cat([ids, more], 1)
        close(logits, full_pass(model, ids)[:, -3:])


def test_reset_forgets(settings, linear_model, tokens, full_pass, feed):
    model, ids, cache = linear_model(settings), tokens(1, 30), DynamicCache()
    feed(model, cache, tokens(1, 90, seed=1))
    cache.reset()
    assert cache.get_seq_length() == 0
    close(feed(model, cache, ids), full_pass(model, ids))


def test_size_does_not_grow(settings, linear_model, tokens, feed):
    model, cache, sizes = linear_model(settings), DynamicCache(), set()
    for seed in range(8):
        feed(model, cache, tokens(1, 60, seed=seed))
        feed(model, cache, tokens(1, 1))
        sizes.add(sum(layer.nbytes for layer in cache.layers))
    assert len(sizes) == 1
    assert cache.get_seq_length() == 8 * 61


@pytest.mark.parametrize("settings", ["augmented", "softmax-hedgehog"], indirect=True)
def test_size_is_bounded_while_recording(settings, linear_model, tokens, feed):
    model, cache, sizes = linear_model(settings), DynamicCache(), []
    cache.layers = [StateLayer(), StateLayer()]
    cache.activate_past_recording()
    for seed in range(UNDO + 60):
        feed(model, cache, tokens(1, 1, seed=seed))
        sizes.append(sum(layer.nbytes for layer in cache.layers))
    assert sizes[-1] == sizes[-50]


def test_state_is_float32_under_16_bit_weights(settings, linear_model, tokens, feed):
    model, cache = linear_model(settings).to(torch.bfloat16), DynamicCache()
    feed(model, cache, tokens(1, 200))
    held = cache.layers[0]._held.tensors
    assert held["state"].dtype == torch.float32
    assert held["window_key"].dtype == torch.bfloat16
