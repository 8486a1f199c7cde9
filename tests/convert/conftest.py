"""A tiny linear model and a tokenizer, made here."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lineahead.convert.replace import linearize
from lineahead.plugins.augmented_attention.schema import PRESETS


@pytest.fixture
def tiny_llama():
    """A random softmax Llama of two layers."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        initializer_range=0.15,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def tiny_linear_llama(tiny_llama):
    """The same, linear."""
    linearize(tiny_llama, PRESETS["augmented"])
    return tiny_llama


@pytest.fixture
def tiny_tokenizer():
    """Bytes as tokens."""
    vocabulary = {chr(33 + i): i for i in range(97)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="!"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="!", pad_token="!")
