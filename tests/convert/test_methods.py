"""Every method of the study as `convert --method NAME`: checkpoint, reload, exported graph, training text."""

import pytest
import torch

from lineahead.convert.adapter import apply_adapter, extract_adapter, read_adapter
from lineahead.convert.checkpoint import load_artifact, load_model
from lineahead.convert.onnx import graph, parity
from lineahead.convert.pipeline import convert_checkpoint, load_teacher
from lineahead.errors import SettingsError
from lineahead.plugins.augmented_attention.huggingface.fixed_layer import CACHE
from lineahead.plugins.augmented_attention.huggingface.modeling import layers_of
from lineahead.plugins.augmented_attention.huggingface.step_model import StepModel
from lineahead.plugins.augmented_attention.methods import PRESETS
from lineahead.recipes.manifest import read_manifest
from lineahead.recipes.schema import Recipe

CAUSAL = [name for name, settings in PRESETS.items() if settings.causal]
QUICK = ("augmented-performer", "augmented-yoso", "transnormer")  # every kind of part; the rest takes minutes
SMALL = {"window": 8}


def converted(source, folder, name):
    torch.manual_seed(0)
    convert_checkpoint(source, folder, Recipe(method={"preset": name, **SMALL}))
    return folder


@pytest.mark.parametrize("name", CAUSAL)
def test_checkpoint(name, source, tmp_path):
    """A reload gives the same logits, from the same random projections; decoding is the whole text's."""
    artifact = converted(source, tmp_path / "artifact", name)
    tokens = torch.arange(2, 26)[None]
    with torch.no_grad():
        want = load_model(artifact)(tokens, use_cache=False).logits
        torch.manual_seed(7)
        model = load_artifact(artifact)[0]
        torch.testing.assert_close(model(tokens, use_cache=False).logits, want, rtol=0, atol=0)
        head = model(tokens[:, :19], use_cache=True)
        tail = model(tokens[:, 19:], **{CACHE: head[CACHE]}, use_cache=True).logits
    torch.testing.assert_close(torch.cat([head.logits, tail], 1), want, rtol=1e-4, atol=1e-4)
    assert read_manifest(artifact).model.settings == layers_of(model.config)[0].settings.as_dict()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.long) for name in CAUSAL]
)
def test_exported_graph(name, source, tmp_path):
    artifact = converted(source, tmp_path / "artifact", name)
    model = load_model(artifact)
    path = tmp_path / "verifier.onnx"
    graph.save(graph.trace(StepModel(model, layers_of(model.config))), path)
    assert parity.compare(artifact, path).largest < 1e-4


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in CAUSAL])
def test_encoder_methods_are_refused_for_a_decoder(name, source, tmp_path):
    with pytest.raises(SettingsError, match=r"linformer.*no causal form") as caught:
        convert_checkpoint(source, tmp_path / "artifact", Recipe(method={"preset": name}))
    assert not (tmp_path / "artifact").exists()
    assert "encoder" in caught.value.hint


def test_an_adapter_carries_the_random_projection(source, tmp_path):
    artifact = converted(source, tmp_path / "artifact", "rfa")
    model = load_model(artifact)
    file = tmp_path / "adapter.safetensors"
    extract_adapter(model, load_teacher(read_manifest(artifact)), file, rank=2, base="tiny")
    torch.manual_seed(5)
    convert_checkpoint(source, tmp_path / "other", Recipe(method={"preset": "rfa", **SMALL}))
    other = load_model(tmp_path / "other")
    name = "model.layers.0.self_attn.lineahead.random_map"
    assert not torch.allclose(other.get_buffer(name), model.get_buffer(name))
    apply_adapter(other, read_adapter(file))
    torch.testing.assert_close(other.get_buffer(name), model.get_buffer(name).half().float())
