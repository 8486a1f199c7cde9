"""`generate()` of linear models: every mode gives the text that whole passes give."""

import pytest
import torch
from transformers import set_seed

from lineahead.errors import InputError
from lineahead.plugins.augmented_attention.huggingface.cache import StateLayer
from lineahead.plugins.augmented_attention.huggingface.fixed_layer import CACHE

LENGTH = 80
SETTINGS = ("augmented", "softmax-hedgehog", "augmented-performer", "yoso")


@pytest.fixture
def greedy(full_pass):
    """Greedy text by whole passes."""

    def run(model, ids, steps=LENGTH):
        for _ in range(steps):
            ids = torch.cat([ids, full_pass(model, ids)[:, -1:].argmax(-1)], 1)
        return ids

    return run


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_greedy(settings, linear_model, tokens, greedy, family):
    model, ids = linear_model(settings, family), tokens(2, 50)
    made = model.generate(ids, max_new_tokens=LENGTH, do_sample=False, return_dict_in_generate=True)
    assert torch.equal(made.sequences, greedy(model, ids))
    assert all(isinstance(layer, StateLayer) for layer in made[CACHE].layers)


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "temperature": 0.8, "top_k": 20},
        {"do_sample": False, "num_beams": 3},
        {"do_sample": True, "num_return_sequences": 3},
        {"do_sample": True, "num_beams": 2, "num_return_sequences": 2},
    ],
    ids=["sample", "beam", "several", "beam-sample"],
)
def test_other_modes_equal_no_cache(settings, linear_model, tokens, options):
    model, ids, made = linear_model(settings), tokens(2, 40), []
    for use_cache in (True, False):
        set_seed(0)
        made.append(model.generate(ids, max_new_tokens=30, use_cache=use_cache, **options))
    assert torch.equal(*made)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_left_padded_batch_equals_single_rows(settings, linear_model, tokens, family):
    model, ids = linear_model(settings, family), tokens(3, 60)
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 17, 57)):
        ids[row, :padding], mask[row, :padding] = 0, 0
    batch = model.generate(ids, attention_mask=mask, max_new_tokens=40, do_sample=False)
    for row, padding in enumerate((0, 17, 57)):
        alone = model.generate(ids[row : row + 1, padding:], max_new_tokens=40, do_sample=False)
        assert torch.equal(batch[row, padding:], alone[0])


def test_prompt_lookup_equals_greedy(settings, linear_model, tokens):
    model, ids = linear_model(settings), tokens(1, 20).repeat(1, 3)
    plain = model.generate(ids, max_new_tokens=LENGTH, do_sample=False)
    fast = model.generate(ids, max_new_tokens=LENGTH, do_sample=False, prompt_lookup_num_tokens=5)
    assert torch.equal(plain, fast)


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        *((name, "linear") for name in SETTINGS),  # of which some tokens are taken
        *((name, kind) for name in SETTINGS[:2] for kind in ("softmax", "itself")),
    ],
    indirect=["settings"],
)
def test_assistants_equal_greedy(settings, linear_model, softmax_model, tokens, kind):
    model, ids = linear_model(settings), tokens(1, 60)
    assistant = {"softmax": softmax_model, "linear": lambda: linear_model(settings), "itself": lambda: model}[
        kind
    ]()
    if kind == "linear":
        for name, weight in assistant.named_parameters():
            if "lineahead" in name:
                weight.data *= 0.8
    plain = model.generate(ids, max_new_tokens=LENGTH, do_sample=False)
    fast = model.generate(ids, max_new_tokens=LENGTH, do_sample=False, assistant_model=assistant)
    assert torch.equal(plain, fast)


def test_linear_assistant_of_the_softmax_model(settings, linear_model, softmax_model, tokens):
    model, ids = softmax_model(), tokens(1, 60)
    plain = model.generate(ids, max_new_tokens=LENGTH, do_sample=False)
    fast = model.generate(ids, max_new_tokens=LENGTH, do_sample=False, assistant_model=linear_model(settings))
    assert torch.equal(plain, fast)


def test_a_returned_cache_continues_the_text(settings, linear_model, tokens, greedy):
    model, ids = linear_model(settings), tokens(1, 30)
    first = model.generate(ids, max_new_tokens=10, do_sample=False, return_dict_in_generate=True)
    more = torch.cat([first.sequences, tokens(1, 5, seed=3)], 1)
    inputs = {"attention_mask": torch.ones_like(more), CACHE: first[CACHE]}
    second = model.generate(more, max_new_tokens=20, do_sample=False, **inputs)
    assert torch.equal(second, greedy(model, more, 20))


def test_static_caches_are_refused(settings, linear_model, tokens):
    with pytest.raises(InputError, match="cache_implementation='static'"):
        linear_model(settings).generate(tokens(1, 9), max_new_tokens=3, cache_implementation="static")
