"""What linear attention loses first: finding one fact again in a long text.

Two tests, both scored by whether every token of the answer is the likeliest one. ``needle``: one sentence
with a number, at a random depth of unrelated sentences (after Kamradt's needle in a haystack, 2023).
``pairs``: a list of names and numbers that fills the text, one of which is asked for: associative recall
(Arora et al., 2023, arXiv:2312.04927), where the state has to hold all of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lineahead.convert.judging.pair import Pair, Reader
from lineahead.convert.training.leading import leading_token
from lineahead.errors import InputError
from lineahead.recipes.manifest import Recall

KINDS = ("needle", "pairs")
_CITIES = ("Oslo", "Lima", "Cairo", "Delhi", "Quito", "Paris", "Tokyo", "Berlin", "Madrid", "Dublin")
_FILLER = (
    "The river was low that summer and the boats stayed in the harbour.",
    "Most of the shops along the road had closed by six in the evening.",
    "She put the letters back into the drawer and went out for a walk.",
    "A cold wind came over the hills and the leaves began to fall.",
    "They talked about the weather, the harvest and the price of bread.",
    "The train was late again, so he read the paper from end to end.",
    "In the garden behind the school some children were playing with a dog.",
    "Nobody could remember who had planted the old trees by the gate.",
)
Report = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One question.

    Attributes:
        prompt: token ids ``[N]``: the text and the question.
        answer: token ids that should follow.
    """

    prompt: list[int]
    answer: list[int]


def make_cases(kind: str, tokenizer: Any, context: int, count: int, seed: int) -> list[Case]:
    """Questions of nearly `context` tokens, answer included, never more.

    Args:
        kind: ``needle`` or ``pairs``.
        tokenizer: a transformers tokenizer.
        context: tokens.
        count: how many questions.
        seed: of names, numbers and depths.

    Raises:
        InputError: when `context` is too short for a question.
    """
    random = np.random.default_rng([seed, context, KINDS.index(kind)])
    make, first = _needle if kind == "needle" else _pairs, leading_token(tokenizer)
    if first is None:
        return [make(tokenizer, context, random) for _ in range(count)]
    made = [make(tokenizer, context - 1, random) for _ in range(count)]
    return [replace(one, prompt=[first, *one.prompt]) for one in made]


def measure_recall(
    pair: Pair,
    tokenizer: Any,
    *,
    contexts: Sequence[int],
    count: int = 16,
    kinds: Sequence[str] = KINDS,
    seed: int = 0,
    report: Report = lambda name, done, total: None,
) -> list[Recall]:
    """Share of questions that teacher and student answer, by test and context.

    Args:
        pair: both models.
        tokenizer: theirs.
        contexts: lengths in tokens.
        count: questions per test and context.
        kinds: which tests.
        seed: of the questions.
        report: called with a name, what is done, and how much there is in all.

    Raises:
        InputError: when a context is too short for a question.
    """
    found = []
    total, done = len(kinds) * len(contexts) * 2 * count, 0
    for kind in kinds:
        for context in contexts:
            cases = make_cases(kind, tokenizer, context, count, seed)
            accuracy = {}
            for reader in pair.readers():
                right = 0
                for case in cases:
                    right += answers(reader, case)
                    done += 1
                    report(f"{kind} {context}", done, total)
                accuracy[reader.name] = right / count
            found.append(Recall(test=kind, context=context, cases=count, accuracy=accuracy))
    return found


def answers(reader: Reader, case: Case) -> bool:
    """Whether every token of the answer is the likeliest one after what comes before it."""
    ids = torch.tensor([*case.prompt, *case.answer])
    rows = reader.hidden(ids)[len(case.prompt) - 1 : -1]
    said: Tensor = reader.head()(rows).argmax(-1).cpu()
    return bool((said == ids[len(case.prompt) :]).all())


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _needle(tokenizer: Any, context: int, random: np.random.Generator) -> Case:
    city = _CITIES[int(random.integers(len(_CITIES)))]
    fact = f" The special number of {city} is"
    answer = _ids(tokenizer, f" {random.integers(10000, 99999)}")
    needle = [*_ids(tokenizer, fact), *answer, *_ids(tokenizer, ".")]
    room = context - len(needle) - len(_ids(tokenizer, fact)) - len(answer)
    filler: list[int] = []
    while True:
        sentence = _ids(tokenizer, " " + _FILLER[int(random.integers(len(_FILLER)))])
        if len(filler) + len(sentence) > room:
            break
        filler += sentence
    if not filler:
        raise InputError(f"a context of {context} is too short for a question", hint="Use 128 or more.")
    depth = int(random.integers(len(filler) + 1))
    return Case(prompt=[*filler[:depth], *needle, *filler[depth:], *_ids(tokenizer, fact)], answer=answer)


def _pairs(tokenizer: Any, context: int, random: np.random.Generator) -> Case:
    names = [a + b for a in ("Ka", "Lo", "Mi", "Ra", "Se", "To", "Vu", "Zi") for b in _ENDINGS]
    order = [names[int(i)] for i in random.permutation(len(names))]
    lines: list[tuple[str, list[int]]] = []
    text: list[int] = []
    for name in order:
        value = _ids(tokenizer, f" {random.integers(100, 999)}")
        line = [*_ids(tokenizer, f"{name}:"), *value, *_ids(tokenizer, "\n")]
        if len(text) + 2 * len(line) > context:
            break
        text += line
        lines.append((name, value))
    if len(lines) < 2:
        raise InputError(f"a context of {context} is too short for a question", hint="Use 128 or more.")
    name, value = lines[int(random.integers(len(lines)))]
    return Case(prompt=[*text, *_ids(tokenizer, f"{name}:")], answer=value)


_ENDINGS = tuple(a + b for a in "bdfgklmnprstv" for b in ("an", "el", "in", "or", "us", "em", "ik", "ot"))
