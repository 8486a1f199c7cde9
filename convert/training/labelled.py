"""Labelled texts for classification: read from files, tokenised, and cut into batches by a seed."""

import csv
import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lineahead.errors import InputError

HEADER = ("sentence", "label")
PADDING = -1  # in a batch; token ids and labels are not negative


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Texts with a class each.

    Attributes:
        texts: the texts.
        labels: index into `names` for each of them.
        names: the classes, sorted.
    """

    texts: tuple[str, ...]
    labels: tuple[int, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        """How many texts."""
        return len(self.texts)

    @property
    def commonest(self) -> int:
        """The class of most texts; the first of equals."""
        counts = Counter(self.labels)
        return max(range(len(self.names)), key=lambda label: counts[label])

    def share(self, label: int) -> float:
        """Fraction of the texts of one class."""
        return self.labels.count(label) / len(self.labels)

    def first(self, count: int | None) -> "Labelled":
        """The first `count` texts; all when None."""
        return Labelled(texts=self.texts[:count], labels=self.labels[:count], names=self.names)


def read_labelled(path: Path, names: Sequence[str] | None = None) -> Labelled:
    r"""Read ``text<TAB>label`` lines, as SST-2 (with a header ``sentence<TAB>label``) and AG News have them.

    Args:
        path: UTF-8 text.
        names: the classes of another file, so that both number them alike; found in the file when None.

    Raises:
        InputError: when the file cannot be read, a line has no label, or a label is not among `names`.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{path}: cannot read labelled texts: {error}", hint="Give a UTF-8 file of text, tab, label."
        ) from error
    texts, found = [], []
    for number, row in enumerate(rows, 1):
        if (number == 1 and tuple(row) == HEADER) or not row:
            continue
        if len(row) != 2 or not row[1].strip():
            raise InputError(f"{path}:{number}: not a text, a tab and a label", hint="Correct that line.")
        texts.append(row[0].strip())
        found.append(row[1].strip())
    if not texts:
        raise InputError(f"{path}: no labelled texts", hint="Give lines of text, tab, label.")
    known = tuple(sorted(set(found)) if names is None else names)
    odd = sorted(set(found) - set(known))
    if odd:
        raise InputError(f"{path}: label {odd[0]!r} is not one of {known}", hint="Use files of one task.")
    return Labelled(texts=tuple(texts), labels=tuple(known.index(label) for label in found), names=known)


@dataclass(frozen=True, kw_only=True)
class LabelledBatches:
    """Batches of labelled texts in a seeded order that never ends; a :class:`data.BatchSource`.

    A batch is ``[batch_size, 1 + N]`` int64: the label, then the tokens of the text, then :data:`PADDING`.

    Attributes:
        rows: token ids of each text, at most `sequence_length`.
        labels: class of each text.
        sequence_length: most tokens of a text.
        batch_size: texts per batch.
        epochs: passes over the texts, when the stage gives no steps.
        seed: of the order; every pass has its own.
    """

    rows: tuple[tuple[int, ...], ...]
    labels: tuple[int, ...]
    sequence_length: int
    batch_size: int
    epochs: float
    seed: int

    @classmethod
    def of(cls, data: Labelled, tokenizer: Any, *, length: int, **options: Any) -> "LabelledBatches":
        """Tokenise `data`, with the tokenizer's special tokens, cut at `length` tokens.

        Raises:
            InputError: when a text has no tokens.
        """
        encoded = tokenizer(list(data.texts), truncation=True, max_length=length, verbose=False)["input_ids"]
        empty = next((text for text, ids in zip(data.texts, encoded, strict=True) if not ids), None)
        if empty is not None:
            raise InputError(f"the text {empty!r} has no tokens", hint="Remove it.")
        rows = tuple(tuple(int(token) for token in ids) for ids in encoded)
        return cls(rows=rows, labels=data.labels, sequence_length=length, **options)

    @property
    def digest(self) -> str:
        """Hash of tokens and labels."""
        return hashlib.sha256(json.dumps([self.rows, self.labels]).encode()).hexdigest()

    def batch(self, index: int) -> Tensor:
        """Batch number `index`."""
        first = index * self.batch_size
        return self.pack([self._place(first + i) for i in range(self.batch_size)])

    def pack(self, places: Sequence[int]) -> Tensor:
        """The texts at `places` as one batch, as wide as the longest of them."""
        width = max(len(self.rows[place]) for place in places)
        batch = torch.full((len(places), 1 + width), PADDING, dtype=torch.int64)
        for number, place in enumerate(places):
            row = self.rows[place]
            batch[number, 0] = self.labels[place]
            batch[number, 1 : 1 + len(row)] = torch.tensor(row)
        return batch

    def _place(self, position: int) -> int:
        epoch, place = divmod(position, len(self.rows))
        return _order(self.seed, epoch, len(self.rows))[place]

    def steps(self, tokens: int | None, steps: int | None, accumulation: int, processes: int) -> int:
        """Optimiser steps: `steps`, or what `epochs` need."""
        if steps is not None:
            return steps
        return max(1, math.ceil(self.epochs * len(self.rows) / (self.batch_size * accumulation * processes)))


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> tuple[int, ...]:
    """The order of one pass over `count` texts."""
    return tuple(np.random.default_rng([seed, epoch]).permutation(count).tolist())
