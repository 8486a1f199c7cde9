"""Perplexity against a direct computation, windows and strides, and what is refused."""

import math

import pytest
import torch
from torch.nn import functional

from lineahead.convert.checkpoint import load_artifact
from lineahead.convert.evaluate import evaluate
from lineahead.errors import InputError
from lineahead.plugins.augmented_attention.huggingface.attention import teacher


@pytest.fixture
def loaded(artifact):
    return load_artifact(artifact)


def direct(model, ids, windows):
    """Sum of nats and number of tokens over (begin, end, first scored) windows."""
    total = count = 0
    for begin, end, first in windows:
        with torch.no_grad():
            logits = model(input_ids=ids[None, begin:end], use_cache=False).logits[0]
        total += functional.cross_entropy(
            logits[first - begin - 1 : -1], ids[first:end], reduction="sum"
        ).item()
        count += end - first
    return total, count


@pytest.mark.parametrize(
    ("stride", "windows"),
    [
        (None, [(0, 32, 1), (32, 64, 33), (64, 96, 65)]),
        (16, [(0, 32, 1), (16, 48, 32), (32, 64, 48), (48, 80, 64), (64, 96, 80)]),
    ],
)
def test_perplexity_and_bits_per_byte(loaded, text, stride, windows):
    model, tokenizer = loaded
    (found,) = evaluate(model, tokenizer, [text], context=[32], tokens=96, stride=stride)
    ids = torch.tensor(tokenizer(text.read_text(encoding="utf-8")[:96])["input_ids"])
    total, count = direct(model, ids, windows)
    assert found.tokens == count
    assert found.stride == (stride or 32)
    assert found.perplexity["student"] == pytest.approx(math.exp(total / count), rel=1e-5)
    assert found.bits_per_byte["student"] == pytest.approx(total / math.log(2) / count, rel=1e-5)
    with teacher():
        total, count = direct(model, ids, windows)
    assert found.perplexity["teacher"] == pytest.approx(math.exp(total / count), rel=1e-5)


def test_another_teacher_and_several_contexts(loaded, text, source):
    from transformers import AutoModelForCausalLM

    model, tokenizer = loaded
    original = AutoModelForCausalLM.from_pretrained(source)
    own = evaluate(model, tokenizer, [text], context=[16, 64], tokens=128)
    other = evaluate(model, tokenizer, [text], context=[16, 64], tokens=128, teacher=original)
    assert [one.context for one in own] == [16, 64]
    for one, two in zip(own, other, strict=True):
        assert one.perplexity["teacher"] == pytest.approx(two.perplexity["teacher"], rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": [256]}, "longer than the position table of 128"),
        ({"context": [64], "tokens": 32}, "fewer than a context"),
        ({"context": [1]}, "out of range"),
        ({"stride": 33}, "out of range"),
    ],
)
def test_bad_lengths(loaded, text, changes, message):
    with pytest.raises(InputError, match=message):
        evaluate(*loaded, [text], **{"context": [32], "tokens": 96, **changes})
