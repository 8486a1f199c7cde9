"""Gemma 2 holds its scores within +-50: the softmax kernel of converted layers does too, or it is refused."""

from dataclasses import replace

import pytest
import torch

from lineahead.convert.replace import linearize
from lineahead.errors import SettingsError
from lineahead.plugins.augmented_attention.huggingface.attention import teacher
from lineahead.plugins.augmented_attention.huggingface.step_model import StepModel
from lineahead.plugins.augmented_attention.methods import PRESETS

HEDGEHOG = replace(PRESETS["softmax-hedgehog"], window=16, conv_taps=0, sinks=0)


@pytest.fixture
def sharp(softmax_model):
    """A Gemma 2 whose scores are far beyond its cap, in its eager attention, which knows the cap."""

    def build(cap=50.0):
        model = softmax_model("gemma2", attn_logit_softcapping=cap)
        model.set_attn_implementation("eager")
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.data *= 200
        return model

    return build


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def test_a_text_inside_the_window_is_the_original_model(sharp, tokens, full_pass):
    """Nothing is in the state yet: the window's softmax alone speaks. Without the cap it says otherwise."""
    ids, model = tokens(1, 12), sharp()
    want = logits(model, ids)
    layers = linearize(model, HEDGEHOG)
    assert {layer.settings.local for layer in layers} == {"softmax_cap50"}
    torch.testing.assert_close(logits(model, ids), want, rtol=1e-4, atol=1e-4)
    with teacher():
        torch.testing.assert_close(logits(model, ids), want, rtol=0, atol=0)
    uncapped = sharp(cap=None)
    linearize(uncapped, HEDGEHOG)
    assert (logits(uncapped, ids) - want).abs().max() > 1e-2


def test_other_kernels_replace_the_scores_and_the_cap_with_them(sharp):
    layers = linearize(sharp(), PRESETS["augmented"])
    assert {layer.settings for layer in layers} == {PRESETS["augmented"]}


def test_a_cap_without_a_kernel_is_refused(sharp):
    with pytest.raises(SettingsError, match="held within 30, and local='softmax' knows a cap of 50 only"):
        linearize(sharp(cap=30.0), HEDGEHOG)


def test_the_step_graph_has_the_cap(sharp, tokens):
    ids, model = tokens(1, 12), sharp()
    layers = linearize(model, HEDGEHOG)
    want = logits(model, ids)
    stepper = StepModel(model, layers)
    nodes = ids.shape[1]
    chain = torch.ones(nodes, nodes).tril().bool()[None]
    nothing = torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, dtype=torch.long)
    everything = torch.arange(nodes)[None]
    found = stepper(ids, chain, everything, *nothing, torch.zeros(1, dtype=torch.long), *stepper.empty(1))
    torch.testing.assert_close(found[0], want, rtol=1e-4, atol=1e-4)
