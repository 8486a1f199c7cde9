"""Model and config classes: saving, loading, and staying linear."""

import copy
import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lineahead.convert.replace import linearize
from lineahead.errors import ArtifactError, CheckpointError
from lineahead.plugins.augmented_attention.huggingface import modeling
from lineahead.plugins.augmented_attention.huggingface.modeling import (
    LineaheadConfig,
    LineaheadForCausalLM,
    layers_of,
)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "opt"])
def test_saved_and_loaded(settings, linear_model, tokens, full_pass, tmp_path, family):
    model, ids = linear_model(settings, family), tokens(2, 100)
    model.save_pretrained(tmp_path)
    loaded = LineaheadForCausalLM.from_pretrained(tmp_path).eval()
    assert type(loaded) is type(model)
    assert layers_of(loaded.config) == layers_of(model.config)
    assert torch.equal(full_pass(loaded, ids), full_pass(model, ids))
    assert torch.equal(
        loaded.generate(ids, max_new_tokens=20, do_sample=False),
        model.generate(ids, max_new_tokens=20, do_sample=False),
    )


def test_config_file(settings, linear_model, tmp_path):
    model = linear_model(settings, layers=[1])
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "lineahead"
    assert saved["base_model_type"] == "llama"
    assert saved["auto_map"]["AutoModelForCausalLM"] == "modeling_lineahead.LineaheadForCausalLM"
    assert saved["lineahead"]["version"] == 1
    assert saved["lineahead"]["hybrid"] is True
    assert [layer["index"] for layer in saved["lineahead"]["layers"]] == [1]
    assert saved["lineahead"]["layers"][0]["settings"] == settings.as_dict()
    assert saved["hidden_size"] == 32


def test_without_trust_it_is_an_error(settings, linear_model, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    linear_model(settings).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"trust_remote_code|custom code"):
        AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=False)


def test_operators_stay_float32_in_16_bits(settings, linear_model, tmp_path):
    linear_model(settings).save_pretrained(tmp_path)
    loaded = LineaheadForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == (torch.float32 if ".lineahead." in name else torch.bfloat16), name


@pytest.mark.parametrize("change", ["missing", "shape"])
def test_a_lost_operator_weight_is_an_error(settings, linear_model, tmp_path, change):
    linear_model(settings).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = next((name for name in sorted(weights) if ".lineahead." in name), None)
    if name is None:
        pytest.skip("this operator has no weights")
    weights.pop(name)
    if change == "shape":
        weights[name] = torch.zeros(3)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=name):
        LineaheadForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "change", [{"base_model_type": "nonsense"}, {"lineahead": {"version": 99, "layers": []}}]
)
def test_unknown_configs_are_refused(settings, linear_model, tmp_path, change):
    linear_model(settings).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    saved = json.loads(file.read_text())
    file.write_text(json.dumps({**saved, **change}))
    with pytest.raises(ArtifactError, match=r"config\.json"):
        LineaheadForCausalLM.from_pretrained(tmp_path)


def test_others_that_share_the_config_stay_softmax(settings, softmax_model, tokens, full_pass):
    teacher, ids = softmax_model(), tokens(1, 70)
    expected = full_pass(teacher, ids)
    student = AutoModelForCausalLM.from_config(teacher.config)
    linearize(student, settings)
    assert type(teacher.config).__name__ == "LlamaConfig"
    assert torch.equal(full_pass(teacher, ids), expected)


def test_copies(settings, linear_model, tokens, full_pass):
    model, ids = linear_model(settings), tokens(1, 70)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(full_pass(other, ids), full_pass(model, ids))


def test_from_config_makes_a_linear_model(settings, linear_model, tmp_path, tokens, full_pass):
    linear_model(settings).save_pretrained(tmp_path)
    config = LineaheadConfig.from_pretrained(tmp_path)
    model = LineaheadForCausalLM._from_config(config).eval()
    assert hasattr(model.model.layers[0].self_attn, "lineahead")
    assert full_pass(model, tokens(1, 70)).isfinite().all()


@pytest.mark.parametrize("asks", [True, False])
def test_the_class_says_its_config_class_where_transformers_asks(
    asks, settings, linear_model, tmp_path, monkeypatch
):
    monkeypatch.setattr(modeling, "READS_CONFIG_CLASS", asks)
    linear_model(settings).save_pretrained(tmp_path)
    config = LineaheadConfig.from_pretrained(tmp_path)
    for load in (lambda found: found._from_config(config), lambda found: found.from_pretrained(tmp_path)):
        found = type("Found", (LineaheadForCausalLM,), {})  # one process's first load sees none
        assert not hasattr(found, "config_class")
        load(found)
        assert getattr(found, "config_class", None) is (type(config) if asks else None)
