"""Tiny random models of the families, softmax and linear."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from lineahead.convert.replace import linearize
from lineahead.plugins.augmented_attention.huggingface.fixed_layer import CACHE
from lineahead.plugins.augmented_attention.methods import PRESETS

_spec = importlib.util.spec_from_file_location("shaking", Path(__file__).with_name("shaking.py"))
shaking = sys.modules["shaking"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(shaking)

VOCABULARY = 97
COMMON = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "head_dim": 8,
    "initializer_range": 0.15,
}
OTHER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES = {
    "llama": ("LlamaConfig", SIZES),
    "qwen2": ("Qwen2Config", SIZES),
    "qwen3": ("Qwen3Config", SIZES),
    "mistral": ("MistralConfig", {**SIZES, "sliding_window": 16}),
    "gemma": ("GemmaConfig", SIZES),
    "gemma2": ("Gemma2Config", {**SIZES, "sliding_window": 16}),
    "gemma3": (
        "Gemma3TextConfig",
        {**SIZES, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "phi3": ("Phi3Config", SIZES),
    "gpt2": (
        "GPT2Config",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 1024, "initializer_range": 0.15},
    ),
    "opt": ("OPTConfig", {**OTHER, "ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.15}),
    "gpt_neox": ("GPTNeoXConfig", {**OTHER, "intermediate_size": 48, "initializer_range": 0.15}),
}


@pytest.fixture(params=["augmented", "softmax-hedgehog", "augmented-performer", "yoso"])
def settings(request):
    """The settings of presets that differ in their parts: learned maps, random maps, no parameters at all."""
    return PRESETS[request.param]


@pytest.fixture
def softmax_model():
    """Builds the tiny softmax model of a family."""

    def build(family="llama", **changes):
        kind, sizes = FAMILIES[family]
        torch.manual_seed(0)
        config = getattr(transformers, kind)(**{**COMMON, **sizes, **changes})
        return AutoModelForCausalLM.from_config(config).eval()

    return build


@pytest.fixture
def linear_model(softmax_model):
    """Builds the tiny linear model of a family, its operators' weights far from their initial values."""

    def build(settings, family="llama", layers=None, **changes):
        model = softmax_model(family, **changes)
        linearize(model, settings, layers=layers)
        return shaking.shake(model)

    return build


@pytest.fixture
def tokens():
    """Random token ids ``[batch, length]``, special tokens left out."""

    def make(batch, length, seed=0):
        return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture
def full_pass():
    """Logits of whole texts, without any cache."""

    @torch.no_grad()
    def run(model, ids, **inputs):
        return model(input_ids=ids, use_cache=False, **inputs).logits

    return run


@pytest.fixture
def in_chunks():
    """Logits of a text fed in chunks, with a cache that the model makes itself, and that cache."""

    @torch.no_grad()
    def run(model, ids, sizes):
        assert sum(sizes) == ids.shape[1]
        outputs, cache = [], None
        for part in ids.split(list(sizes), 1):
            result = model(input_ids=part, **{CACHE: cache}, use_cache=True)
            outputs.append(result.logits)
            cache = result[CACHE]
        return torch.cat(outputs, 1), cache

    return run


@pytest.fixture
def without_lineahead(tmp_path):
    """Environment in which importing lineahead raises."""
    block = tmp_path / "block" / "lineahead"
    block.mkdir(parents=True)
    (block / "__init__.py").write_text("raise ImportError('not installed')")
    return {
        **os.environ,
        "PYTHONPATH": str(block.parent),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "home"),
        "OMP_NUM_THREADS": "1",
    }
