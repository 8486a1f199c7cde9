"""Families whose attention an adapter routes."""

import copy
import pickle

import pytest
import torch

from lineahead.convert.replace import linearize
from lineahead.convert.tiny_models import settings, tiny_model
from lineahead.errors import ArchitectureError
from lineahead.plugins.augmented_attention.huggingface.attention import teacher
from lineahead.plugins.augmented_attention.huggingface.modeling import (
    LineaheadForCausalLM,
    layers_of,
    route_attention,
)
from lineahead.plugins.augmented_attention.huggingface.softmax_layers import local_layers, softmax_layers
from lineahead.plugins.augmented_attention.huggingface.step_model import StepModel

FAMILIES = ["gptj", "gpt_neo", "falcon"]


@torch.no_grad()
def logits(model, ids, **inputs):
    return model(input_ids=ids, use_cache=False, **inputs).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_the_teacher_is_the_original(family, tokens):
    model, ids = tiny_model(family), tokens(2, 11)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    want = logits(model, ids, attention_mask=mask)
    linearize(model, settings())
    with teacher():
        got = logits(model, ids, attention_mask=mask)
    torch.testing.assert_close(got[mask.bool()], want[mask.bool()], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_copied_and_loaded(family, tokens, tmp_path):
    model, ids = tiny_model(family), tokens(2, 11)
    linearize(model, settings())
    want = logits(model, ids)
    model.save_pretrained(tmp_path)
    for other in (
        LineaheadForCausalLM.from_pretrained(tmp_path).eval(),
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
    ):
        assert torch.equal(logits(other, ids), want)


@pytest.mark.parametrize("family", FAMILIES)
def test_softmax_layers_beside_linear_ones(family, tokens):
    model, ids = tiny_model(family), tokens(2, 20)
    kept = 1 if family == "gpt_neo" else 0
    linearize(model, settings(), keep=[kept])
    want = logits(model, ids)
    step = StepModel(model, layers_of(model.config))
    tree = torch.ones(20, 20).tril().bool().repeat(2, 1, 1)
    none, zeros = torch.zeros(2, 0).long(), torch.zeros(2).long()
    with torch.no_grad():
        got, *_ = step(ids, tree, torch.arange(20).repeat(2, 1), none, zeros, zeros, *step.empty(2))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_gpt_neo_tells_its_windows():
    model = tiny_model("gpt_neo")
    route_attention(model)
    assert [(layer.pattern, layer.window) for layer in softmax_layers(model, ())] == [
        ("whole", 0),
        ("sliding", model.config.window_size),
    ]
    assert local_layers(model) == (1,)


@pytest.mark.parametrize("new", [False, True])
def test_falcons_shared_heads_are_kept_once(new, tokens):
    from transformers import AutoModelForCausalLM, FalconConfig

    torch.manual_seed(0)
    config = FalconConfig(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_kv_heads=2,
        new_decoder_architecture=new,
        multi_query=True,
        initializer_range=0.2,
    )
    model, ids = AutoModelForCausalLM.from_config(config).eval(), tokens(1, 9)
    want = logits(model, ids)
    layers = linearize(model, settings())
    assert [layer.shape.kv_heads for layer in layers] == [2 if new else 1] * 2
    with teacher():
        torch.testing.assert_close(logits(model, ids), want, atol=2e-6, rtol=1e-5)


def test_falcon_with_alibi_is_refused():
    from transformers import AutoModelForCausalLM, FalconConfig

    config = FalconConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, alibi=True
    )
    with pytest.raises(ArchitectureError, match="Falcon with ALiBi"):
        linearize(AutoModelForCausalLM.from_config(config), settings())
