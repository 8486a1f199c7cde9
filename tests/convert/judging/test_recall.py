"""Questions: their length, their answers in the text, and readers that know or do not know them."""

from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lineahead.convert.judging.pair import Pair
from lineahead.convert.judging.recall import KINDS, answers, make_cases, measure_recall
from lineahead.errors import InputError


@pytest.fixture
def letters():
    """One token per character."""
    vocabulary = {chr(i): i for i in range(10, 127)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("context", [256, 300, 1024])
def test_a_question_fills_its_context_and_has_its_answer_in_the_text(letters, kind, context):
    for case in make_cases(kind, letters, context, 5, seed=1):
        assert context - 100 <= len(case.prompt) + len(case.answer) <= context
        text = "".join(chr(one) for one in case.prompt)
        answer = "".join(chr(one) for one in case.answer)
        question = text.rpartition("\n")[2] if kind == "pairs" else text[text.rindex(" The special") :]
        assert question + answer in text


def test_questions_are_the_same_for_the_same_seed(letters):
    first, second, other = (make_cases("pairs", letters, 256, 3, seed=seed) for seed in (1, 1, 2))
    assert first == second
    assert first != other


def test_a_context_without_room_is_refused(letters):
    for kind in KINDS:
        with pytest.raises(InputError, match="too short for a question"):
            make_cases(kind, letters, 20, 1, seed=0)


class Knowing:
    """Says token `said[i]` after position i."""

    def __init__(self, said):
        self.said = said

    def hidden(self, ids):
        return torch.nn.functional.one_hot(torch.tensor(self.said[: len(ids)]), 128).float()

    def head(self):
        return lambda rows: rows


def test_only_a_whole_answer_counts(letters):
    case = make_cases("needle", letters, 256, 1, seed=0)[0]
    right = [*case.prompt[1:], *case.answer, 11]
    assert answers(Knowing(right), case)
    wrong = list(right)
    wrong[len(case.prompt)] = 10  # the answer's second token
    assert not answers(Knowing(wrong), case)


def test_both_models_are_asked(tiny_linear_llama, tiny_tokenizer):
    tokenizer = tiny_tokenizer
    found = measure_recall(Pair(student=tiny_linear_llama), tokenizer, contexts=[256], count=2)
    assert [(one.test, one.context, one.cases) for one in found] == [("needle", 256, 2), ("pairs", 256, 2)]
    assert all(set(one.accuracy) == {"teacher", "student"} for one in found)
    assert SimpleNamespace(**found[0].accuracy).teacher in (0.0, 0.5, 1.0)
