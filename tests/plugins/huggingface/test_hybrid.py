"""Models with linear and softmax layers, as transformers runs them."""

import pytest
import torch

from lineahead.plugins.augmented_attention.huggingface.cache import StateLayer
from lineahead.plugins.augmented_attention.huggingface.fixed_layer import CACHE
from lineahead.plugins.augmented_attention.huggingface.modeling import LineaheadForCausalLM

FAMILIES = ["llama", "mistral", "gemma2", "gemma3"]
LENGTH = 25


@pytest.fixture
def hybrid(request, linear_model):
    """Builds the tiny model of a family with one linear layer, the other with its own window or none.

    Which one alternates: each method and each family has it first in one test and second in the next.
    """
    turn = request.node.callspec.indices

    def build(settings, family):
        return linear_model(settings, family, layers=[(turn["settings"] + turn.get("family", 1)) % 2])

    return build


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_and_beams_equal_no_cache(settings, hybrid, tokens, family):
    model, ids = hybrid(settings, family), tokens(2, 40)
    for options in ({}, {"num_beams": 2}):
        cached, plain = (
            model.generate(ids, max_new_tokens=LENGTH, do_sample=False, use_cache=use, **options)
            for use in (True, False)
        )
        assert torch.equal(cached, plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_rollback_equals_greedy(settings, hybrid, tokens, family):
    model, ids = hybrid(settings, family), tokens(1, 20).repeat(1, 2)
    plain = model.generate(ids, max_new_tokens=LENGTH, do_sample=False)
    fast = model.generate(ids, max_new_tokens=LENGTH, do_sample=False, prompt_lookup_num_tokens=4)
    assert torch.equal(plain, fast)
    assisted = model.generate(ids, max_new_tokens=LENGTH, do_sample=False, assistant_model=model)
    assert torch.equal(plain, assisted)


@pytest.mark.parametrize("family", FAMILIES)
def test_left_padded_rows_equal_single_rows(settings, hybrid, tokens, family):
    model, ids = hybrid(settings, family), tokens(2, 40)
    mask = torch.ones_like(ids)
    ids[1, :23], mask[1, :23] = 0, 0
    batch = model.generate(ids, attention_mask=mask, max_new_tokens=LENGTH, do_sample=False)
    alone = model.generate(ids[1:, 23:], max_new_tokens=LENGTH, do_sample=False)
    assert torch.equal(batch[1, 23:], alone[0])


def test_saved_and_loaded(settings, hybrid, tokens, full_pass, tmp_path):
    model, ids = hybrid(settings, "gemma3"), tokens(2, 60)
    model.save_pretrained(tmp_path)
    loaded = LineaheadForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(full_pass(loaded, ids), full_pass(model, ids))


def test_only_softmax_layers_grow(settings, linear_model, tokens):
    model = linear_model(settings, "gemma3", layers=[1])
    made = model.generate(tokens(1, 60), max_new_tokens=9, do_sample=False, return_dict_in_generate=True)
    local, state = made[CACHE].layers
    assert local.keys.shape[2] == 15  # of a window of 16, the query is not cached
    assert isinstance(state, StateLayer)
