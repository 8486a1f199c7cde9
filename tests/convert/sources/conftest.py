"""Tiny checkpoints, made here: a folder as transformers writes it, and the same models as GGUF files."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

for _name, _file in {"tiny_ggufs": "ggufs.py", "refusals": "refusals.py"}.items():
    if _name not in sys.modules:
        _spec = importlib.util.spec_from_file_location(_name, Path(__file__).with_name(_file))
        sys.modules[_name] = importlib.util.module_from_spec(_spec)
        _spec.loader.exec_module(sys.modules[_name])

TEXT = [
    "The quick brown fox jumps over the lazy dog, 1234567890 times.\n",
    "def f(x):\n    return x + 1  # don't\n",
    "Größe, naïve, \u4f60\u597d, \U0001f600 and\ttabs\r\n\r\nlines   spaces",
]


def make_tokenizer(vocab_size=320):
    """A byte-level BPE tokenizer with a chat template, trained on three lines."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template="{% for message in messages %}{{ message['content'] }}{% endfor %}",
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    """A Llama checkpoint of 2 layers with grouped-query heads; not to be written to."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny-llama"
    config = LlamaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
    return folder


@pytest.fixture
def checkpoint(original, tmp_path):
    """A copy of the checkpoint, to damage."""
    return shutil.copytree(original, tmp_path / "tiny-llama")


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()
