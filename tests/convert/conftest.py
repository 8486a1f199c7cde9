"""Tiny models, tokenizers, artifacts, texts and recipes, made here."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lineahead.convert.pipeline import convert_checkpoint
from lineahead.convert.replace import linearize
from lineahead.plugins.augmented_attention.methods import PRESETS
from lineahead.recipes.load import parse_recipe

_spec = importlib.util.spec_from_file_location("tiny_two_sided", Path(__file__).with_name("two_sided.py"))
sys.modules["tiny_two_sided"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["tiny_two_sided"])

METHOD = {"preset": "softmax-hedgehog", "window": 8, "conv_taps": 4, "sinks": 2}
LETTERS = "abcdefghijklmnopqrstuvwxyz .\n"


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


@pytest.fixture
def one_thread():
    """Training with one thread: no contention between parallel tests, bit-for-bit repeatable."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """A random softmax Llama of two layers with letters as tokens."""
    folder = tmp_path_factory.mktemp("source")
    vocabulary = {letter: number for number, letter in enumerate(["?", "<end>", *LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="?", eos_token="<end>", bos_token="<end>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            bos_token_id=1,
            eos_token_id=1,
            initializer_range=0.2,
        )
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A file of words."""
    path = tmp_path_factory.mktemp("text") / "words.txt"
    generator = torch.Generator().manual_seed(1)
    numbers = torch.randint(0, 27, (6000,), generator=generator).tolist()
    path.write_text("".join(LETTERS[number] for number in numbers), encoding="utf-8")
    return path


@pytest.fixture
def recipe(text):
    """Make a recipe from its stages; further sections by name."""

    def make(*stages, **sections):
        common = {"sequence_length": 32, "batch_size": 2, "seed": 3}
        data = {
            "method": METHOD,
            "data": {"files": [str(text)]},
            "precision": "fp32",
            "stages": [{**common, **stage} for stage in stages],
        }
        return parse_recipe({**data, **sections}, "test")

    return make


@pytest.fixture
def artifact(source, tmp_path, recipe, one_thread):
    """An untrained linear artifact."""
    folder = tmp_path / "artifact"
    convert_checkpoint(source, folder, recipe())
    return folder


@pytest.fixture
def weights():
    """Read an artifact's tensors."""
    from safetensors.torch import load_file

    return lambda folder: load_file(folder / "model.safetensors")
