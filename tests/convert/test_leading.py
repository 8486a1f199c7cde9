"""Models whose tokenizer puts BOS before a text: every row and window begins with it."""

import math

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from lineahead.convert.checkpoint import load_artifact
from lineahead.convert.evaluate import evaluate
from lineahead.convert.judging.agreement import measure_agreement
from lineahead.convert.judging.pair import Pair
from lineahead.convert.judging.recall import KINDS, make_cases
from lineahead.convert.planner.probe import Probe
from lineahead.convert.training.data import Batches, load_tokens, save_tokens, text_tokens
from lineahead.convert.training.leading import leading_token, led
from lineahead.convert.training.packed import DocumentBatches
from lineahead.recipes.schema import Data

LETTERS = [chr(i) for i in range(10, 127)]
BOS, EOS = 5, 6


def letters(leading):
    """One token per character; BOS before a text, or not."""
    vocabulary = {one: i + 10 for i, one in enumerate(LETTERS)} | {"<s>": BOS, "</s>": EOS, "?!": 0}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="?!"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if leading:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="?!")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "text.jsonl"
    path.write_text("\n".join('{"text": "%s"}' % ("abcdefgh" * n) for n in range(1, 12)))
    return path


def test_a_bos_token_alone_is_no_reason():
    assert leading_token(letters(True)) == BOS
    assert leading_token(letters(False)) is None
    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    assert leading_token(plain) is None
    rows = torch.arange(6).reshape(2, 3)
    assert led(rows, None) is rows
    assert led(rows, 9).tolist() == [[9, 1, 2], [9, 4, 5]]
    assert rows[0, 0] == 0


@pytest.mark.parametrize("leading", [True, False])
def test_training_rows(texts, tmp_path, leading):
    tokens = text_tokens(Data(files=(str(texts),)), letters(leading), 400, seed=0)
    save_tokens(tmp_path / "tokens.npz", tokens)
    tokens = load_tokens(tmp_path / "tokens.npz")
    assert tokens.first == (BOS if leading else None)
    common = {"tokens": tokens, "sequence_length": 32, "batch_size": 12, "seed": 0}
    rows = Batches(**common).batch(0)
    assert (rows[:, 0] == BOS).all() == leading
    assert not (rows[:, 1:] == BOS).any()
    laid = DocumentBatches(**common, separator=EOS, multiple=8).batch(0)
    begins = (laid[:, 1] == 0) & (laid[:, 0] >= 0)
    assert begins.sum() > 12
    assert (laid[:, 0][begins] == BOS).all() == leading
    assert (laid[:, 0] == BOS).sum() == (begins.sum() if leading else 0)


def test_a_cache_of_before_has_none(texts, tmp_path):
    np.savez(tmp_path / "tokens.npz", ids=np.arange(9, dtype=np.int32), source=np.asarray("x"))
    assert load_tokens(tmp_path / "tokens.npz").first is None


@pytest.mark.parametrize("kind", KINDS)
def test_questions_are_as_long_as_before(kind):
    for case in make_cases(kind, letters(True), 300, 3, seed=1):
        assert case.prompt[0] == BOS
        assert BOS not in case.prompt[1:]
        assert 200 <= len(case.prompt) + len(case.answer) <= 300


def test_windows_that_are_judged(artifact, tmp_path):
    model, own = load_artifact(artifact)
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox " * 20)
    ids = torch.tensor(own(path.read_text())["input_ids"])[:96]
    windows = led(ids.reshape(3, 32), 3)

    class Leading(type(own)):
        """The artifact's tokenizer with BOS before every text."""

        bos_token_id = 3

        def __call__(self, text, **options):
            return {"input_ids": [3]} if text == "" else super().__call__(text, **options)

    leading = Leading.from_pretrained(artifact)
    with torch.no_grad():
        logits = model(input_ids=windows, use_cache=False).logits[:, :-1]
    nats = functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).item()
    (found,) = evaluate(model, leading, [path], context=[32], tokens=96)
    assert found.perplexity["student"] == pytest.approx(math.exp(nats), rel=1e-5)
    (other,) = evaluate(model, own, [path], context=[32], tokens=96)
    assert found.perplexity["student"] != other.perplexity["student"]
    assert Probe(model, ids, context=32, leading=3).nats(()) == pytest.approx(nats, rel=1e-5)
    pair = Pair(student=model)
    with_it, without = (
        measure_agreement(pair, ids, context=32, file="x", leading=one).kl for one in (3, None)
    )
    assert with_it != without
