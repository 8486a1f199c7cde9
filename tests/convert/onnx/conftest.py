"""A tiny random artifact, its step model and its traced graph, made once."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lineahead.convert.checkpoint import load_model, save_artifact
from lineahead.convert.onnx import graph
from lineahead.convert.replace import linearize
from lineahead.plugins.augmented_attention.huggingface.modeling import layers_of
from lineahead.plugins.augmented_attention.huggingface.step_model import StepModel
from lineahead.plugins.augmented_attention.methods import preset


@pytest.fixture(scope="session")
def tiny_artifact(tmp_path_factory):
    """A linear Llama of two layers with tied embeddings and parameters that matter."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.2,
        max_position_embeddings=512,
    )
    model = LlamaForCausalLM(config).eval()
    linearize(model, preset("softmax-hedgehog", window=8, conv_taps=5, sinks=2))
    for name, parameter in model.named_parameters():
        if ".lineahead." in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return save_artifact(model, None, tmp_path_factory.mktemp("onnx") / "artifact")


@pytest.fixture(scope="session")
def step_model(tiny_artifact):
    """Its step model."""
    model = load_model(tiny_artifact)
    return StepModel(model, layers_of(model.config))


@pytest.fixture(scope="session")
def traced(step_model, made_once):
    """Its step graph on disk."""

    def make(folder):
        folder.mkdir()
        graph.save(graph.trace(step_model), folder / "verifier.onnx")

    return made_once("traced", make) / "verifier.onnx"
