"""The attention function: one model, many ways of feeding it the same text."""

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicCache

from lineahead.errors import InputError
from lineahead.plugins.augmented_attention.huggingface.attention import teacher, transfer
from lineahead.plugins.augmented_attention.huggingface.cache import StateLayer
from lineahead.plugins.augmented_attention.huggingface.fixed_layer import CACHE

FAMILIES = [
    "llama",
    "qwen2",
    "qwen3",
    "mistral",
    "gemma",
    "gemma2",
    "gemma3",
    "phi3",
    "gpt2",
    "opt",
    "gpt_neox",
]
BOUNDARIES = [31, 32, 63, 64, 65, 127, 128, 129]


def close(actual, expected):
    assert_close(actual, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("length", BOUNDARIES)
def test_prefill_then_decode_is_the_full_pass(settings, linear_model, tokens, full_pass, in_chunks, length):
    model, ids = linear_model(settings), tokens(2, length + 3)
    close(in_chunks(model, ids, [length, 1, 1, 1])[0], full_pass(model, ids))


def test_token_by_token_is_the_full_pass(settings, linear_model, tokens, full_pass, in_chunks):
    model, ids = linear_model(settings), tokens(2, 132)
    close(in_chunks(model, ids, [1] * 132)[0], full_pass(model, ids))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_in_chunks(settings, linear_model, tokens, full_pass, in_chunks, family):
    model, ids = linear_model(settings, family), tokens(2, 150)
    logits, cache = in_chunks(model, ids, [70, 1, 5, 64, 10])
    close(logits, full_pass(model, ids))
    assert all(isinstance(layer, StateLayer) for layer in cache.layers)


def test_prompts_longer_than_a_chunk(settings, linear_model, tokens, full_pass, in_chunks):
    model, ids = linear_model(settings), tokens(1, 601)
    close(in_chunks(model, ids, [600, 1])[0], full_pass(model, ids))


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "opt"])
def test_padding_anywhere(settings, linear_model, tokens, full_pass, family, cached):
    model, ids = linear_model(settings, family), tokens(3, 90)
    lengths, width = [90, 71, 3], 90
    for side in ("left", "right"):
        padded, mask = torch.zeros(3, width, dtype=torch.long), torch.zeros(3, width, dtype=torch.long)
        for row, length in enumerate(lengths):
            place = slice(width - length, width) if side == "left" else slice(0, length)
            padded[row, place], mask[row, place] = ids[row, :length], 1
        inputs = {"attention_mask": mask, "use_cache": cached}
        if family != "opt":  # OPT derives positions from the mask
            inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
        with torch.no_grad():
            logits = model(input_ids=padded, **inputs).logits
        for row, length in enumerate(lengths):
            close(logits[row, mask[row].bool()], full_pass(model, ids[row : row + 1, :length])[0])


def test_earlier_outputs_do_not_depend_on_later_tokens(settings, linear_model, tokens, full_pass):
    model, ids = linear_model(settings), tokens(1, 140)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(2):
        before = full_pass(model, ids)
        for position in (1, 63, 64, 100, 139):
            changed = ids.clone()
            changed[0, position] = 3 + (ids[0, position] - 2) % 90
            after = full_pass(model, changed)
            assert torch.equal(after[:, :position], before[:, :position])
            assert not torch.equal(after[:, position:], before[:, position:])
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_every_operator_weight_gets_a_gradient(settings, linear_model, tokens):
    model, ids = linear_model(settings), tokens(2, 100)
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().max() > 0, name


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "gpt2"])
@pytest.mark.parametrize("padded", [False, True])
def test_teacher_is_the_original_model(
    settings, softmax_model, linear_model, tokens, full_pass, family, padded
):
    ids = tokens(2, 80)
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :13] = 0
    original, model = softmax_model(family), linear_model(settings, family)
    expected = full_pass(original, ids, attention_mask=mask)
    with teacher():
        assert torch.equal(full_pass(model, ids, attention_mask=mask)[mask.bool()], expected[mask.bool()])
        text = model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
    assert torch.equal(text, original.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False))
    assert not torch.allclose(full_pass(model, ids, attention_mask=mask), expected, atol=1e-3)


def test_eager_models_keep_their_eager_teacher(settings, softmax_model, tokens, full_pass):
    from lineahead.convert.replace import linearize

    original, ids = softmax_model("gemma2"), tokens(2, 40)
    config = type(original.config).from_dict(original.config.to_dict())
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    model.load_state_dict(original.state_dict())
    expected = full_pass(model, ids)
    linearize(model, settings)
    with teacher():
        assert torch.equal(full_pass(model, ids), expected)


def test_transfer_records_every_converted_layer(settings, linear_model, softmax_model, tokens, full_pass):
    model, ids, calls = linear_model(settings), tokens(2, 70), []
    mask = torch.ones_like(ids)
    mask[1, 60:] = 0
    with transfer(calls.append):
        logits = full_pass(model, ids, attention_mask=mask)
    assert torch.equal(logits, full_pass(softmax_model(), ids, attention_mask=mask))
    assert [call.module for call in calls] == [layer.self_attn for layer in model.model.layers]
    for call in calls:
        assert call.query.shape == (2, 4, 70, 8)
        assert call.key.shape == call.value.shape == (2, 2, 70, 8)
        assert call.linear().shape == call.output.shape == (2, 4, 70, 8)
        assert torch.equal(call.valid, mask.bool())
        assert call.linear()[1, :, 60:].abs().max() == 0


def test_unlisted_layers_keep_softmax_and_their_own_cache(
    settings, linear_model, tokens, full_pass, in_chunks
):
    for family, linear in (("llama", 1), ("gemma3", 1), ("gemma3", 0)):
        model, ids = linear_model(settings, family, layers=[linear]), tokens(2, 100)
        logits, cache = in_chunks(model, ids, [60, 1, 30, 9])
        close(logits, full_pass(model, ids))
        assert [isinstance(layer, StateLayer) for layer in cache.layers] == [i == linear for i in (0, 1)]


def test_unlisted_layers_with_padding(settings, linear_model, tokens, full_pass):
    model, ids = linear_model(settings, "gemma3", layers=[1]), tokens(2, 50)
    padded = torch.cat([torch.zeros(2, 9, dtype=torch.long), ids], 1)
    mask = (padded > 0).long()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    for cached in (False, True):
        with torch.no_grad():
            result = model(padded, attention_mask=mask, position_ids=positions, use_cache=cached)
        close(result.logits[:, 9:], full_pass(model, ids))


def test_packed_texts_are_refused(settings, linear_model, tokens):
    model, ids = linear_model(settings), tokens(1, 20)
    positions = torch.cat([torch.arange(12), torch.arange(8)])[None]
    with pytest.raises(InputError, match="packed"):
        model(ids, position_ids=positions, use_cache=False)


def test_a_filled_kv_cache_is_refused(settings, linear_model, softmax_model, tokens):
    ids = tokens(1, 20)
    cache = softmax_model()(ids)[CACHE]
    with pytest.raises(InputError, match="DynamicLayer"):
        linear_model(settings)(ids, **{CACHE: cache})


def test_an_empty_cache_of_any_making_becomes_states(settings, linear_model, tokens):
    model, cache = linear_model(settings), DynamicCache()
    model(tokens(1, 20), **{CACHE: cache})
    assert [type(layer) for layer in cache.layers] == [StateLayer, StateLayer]
