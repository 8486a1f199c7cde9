"""In-place linearization."""

import logging

import pytest
import torch

from lineahead.convert.checkpoint import load_model, save_artifact
from lineahead.convert.replace import check_routing, linearize
from lineahead.errors import ArchitectureError, InputError
from lineahead.plugins.augmented_attention.methods import PRESETS

SETTINGS = PRESETS["augmented"]


def test_weights_stay_and_operators_come(tiny_llama):
    before = {name: weight.clone() for name, weight in tiny_llama.named_parameters()}
    layers = linearize(tiny_llama, SETTINGS)
    after = dict(tiny_llama.named_parameters())
    assert [layer.name for layer in layers] == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert all(".lineahead." in name for name in after.keys() - before.keys())
    assert isinstance(tiny_llama, type(tiny_llama).softmax_class)


def test_operators_are_float32_on_the_layers_device(tiny_llama):
    linearize(tiny_llama.to(torch.bfloat16), SETTINGS)
    added = [weight for name, weight in tiny_llama.named_parameters() if ".lineahead." in name]
    assert {weight.dtype for weight in added} == {torch.float32}
    assert tiny_llama(torch.ones(1, 70, dtype=torch.long)).logits.dtype == torch.bfloat16


def test_some_layers_only(tiny_llama, caplog):
    with caplog.at_level(logging.INFO):
        assert [layer.index for layer in linearize(tiny_llama, SETTINGS, layers=[1])] == [1]
    assert "1 of 2 attention layers converted" in caplog.text


def test_unknown_layers_are_refused(tiny_llama):
    with pytest.raises(InputError, match=r"\[7\].*0 to 1"):
        linearize(tiny_llama, SETTINGS, layers=[0, 7])


def test_twice_is_refused(tiny_linear_llama):
    with pytest.raises(InputError, match="linear already"):
        linearize(tiny_linear_llama, SETTINGS)


def test_a_layer_that_is_not_routed_is_found(tiny_llama):
    layers = linearize(tiny_llama, SETTINGS)
    tiny_llama.set_attn_implementation("sdpa")
    with pytest.raises(ArchitectureError, match=r"layers\.0\.self_attn: the operator ran 0 times"):
        check_routing(tiny_llama, layers)


def test_kept_layers_stay(tiny_llama):
    assert [layer.index for layer in linearize(tiny_llama, SETTINGS, keep=[0])] == [1]


@pytest.mark.parametrize(("keep", "message"), [([5], r"\[5\]"), ([0, 1], "no layer is left")])
def test_layers_that_cannot_be_kept(tiny_llama, keep, message):
    with pytest.raises(InputError, match=message):
        linearize(tiny_llama, SETTINGS, keep=keep)


def test_a_model_of_which_all_is_kept_is_the_original(tiny_llama, tmp_path):
    tokens = torch.arange(2, 42)[None]
    asked = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": None}
    logits, text = tiny_llama(tokens).logits, tiny_llama.generate(tokens, **asked)
    assert linearize(tiny_llama, SETTINGS, keep="all") == []
    save_artifact(tiny_llama, None, tmp_path / "original", layers=[])
    for model in (tiny_llama, load_model(tmp_path / "original")):
        assert torch.equal(model(tokens).logits, logits)
        assert torch.equal(model.generate(tokens, **asked), text)
