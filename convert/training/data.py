"""Training tokens: documents tokenised, joined and cut into sequences, reproducible from a seed."""

import hashlib
import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lineahead.convert.training.leading import leading_token
from lineahead.convert.training.text import dataset_documents, documents, expand
from lineahead.errors import InputError
from lineahead.recipes.files import replacing
from lineahead.recipes.schema import Data

logger = logging.getLogger(__name__)
_BATCH = 64  # documents per tokeniser call


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """A stream of token ids.

    Attributes:
        ids: ``[N]`` int32; documents are separated by the end-of-text token.
        source: where they came from, in words.
        first: takes the place of every text's or row's first token (:func:`leading.leading_token`).
    """

    ids: NDArray[np.int32]
    source: str
    first: int | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the ids."""
        return hashlib.sha256(np.ascontiguousarray(self.ids).tobytes()).hexdigest()


def text_tokens(data: Data, tokenizer: Any, count: int, seed: int) -> Tokens:
    """About `count` tokens of the recipe's files or dataset, documents shuffled by `seed`.

    Args:
        data: with ``files`` or ``dataset``.
        tokenizer: a transformers tokenizer.
        count: tokens wanted; fewer come back when the text is shorter.
        seed: of the documents' order.

    Raises:
        InputError: when there is no readable text.
    """
    first = leading_token(tokenizer)
    if data.dataset is not None:
        ids = tokenise(dataset_documents(data.dataset, seed), tokenizer, count)
        return Tokens(ids=ids, source=data.dataset.name, first=first)
    paths = expand(data.files)
    found = [text for path in paths for text in documents(path)]
    order = np.random.default_rng(seed).permutation(len(found))
    ids = tokenise((found[i] for i in order), tokenizer, count)
    return Tokens(ids=ids, source=", ".join(path.name for path in paths), first=first)


def tokenise(texts: Iterable[str], tokenizer: Any, count: int) -> NDArray[np.int32]:
    """Token ids of `texts`, each followed by the end-of-text token, until there are `count`.

    Raises:
        InputError: when nothing comes out.
    """
    separator = tokenizer.eos_token_id
    pieces: list[NDArray[np.int32]] = []
    total = 0
    for group in _groups(texts):
        encoded = tokenizer(group, add_special_tokens=False, verbose=False)["input_ids"]
        for ids in encoded:
            pieces.append(np.asarray([*ids, *([] if separator is None else [separator])], np.int32))
            total += len(pieces[-1])
        if total >= count:
            break
    if not total:
        raise InputError("the training text is empty", hint="Give files with text.")
    return np.concatenate(pieces)[:count]


def _groups(texts: Iterable[str]) -> Iterator[list[str]]:
    held: list[str] = []
    for text in texts:
        held.append(text)
        if len(held) == _BATCH:
            yield held
            held = []
    if held:
        yield held


class BatchSource(Protocol):
    """Where a run's batches come from; batch i is a pure function of i, so a resumed run sees the same."""

    @property
    def sequence_length(self) -> int:
        """Tokens per row, at most."""

    @property
    def batch_size(self) -> int:
        """Rows per batch."""

    @property
    def digest(self) -> str:
        """Hash of the data."""

    def batch(self, index: int) -> Tensor:
        """Batch number `index`: ``[batch_size, ...]`` int64."""

    def steps(self, tokens: int | None, steps: int | None, accumulation: int, processes: int) -> int:
        """Optimiser steps of a stage given in tokens or steps."""


@dataclass(frozen=True, kw_only=True)
class Batches:
    """Fixed-length sequences in a seeded order that never ends; batch i is a pure function of i.

    Attributes:
        tokens: the stream.
        sequence_length: tokens per sequence.
        batch_size: sequences per batch.
        seed: of the order; every pass over the data has its own.
    """

    tokens: Tokens
    sequence_length: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        """Refuse a stream shorter than one sequence.

        Raises:
            InputError: saying how many tokens are missing.
        """
        if self.sequences < 1:
            raise InputError(
                f"{len(self.tokens.ids)} training tokens are less than a sequence of {self.sequence_length}",
                hint="Give more text or a smaller sequence_length.",
            )

    @property
    def digest(self) -> str:
        """Hash of the tokens."""
        return self.tokens.digest

    @property
    def sequences(self) -> int:
        """Sequences in one pass."""
        return len(self.tokens.ids) // self.sequence_length

    def batch(self, index: int) -> Tensor:
        """Batch number `index`: ``[batch_size, sequence_length]`` int64."""
        first = index * self.batch_size
        rows = [self._row(first + i) for i in range(self.batch_size)]
        return torch.from_numpy(np.stack(rows).astype(np.int64))

    def _row(self, position: int) -> NDArray[np.int32]:
        epoch, place = divmod(position, self.sequences)
        order = np.random.default_rng([self.seed, epoch]).permutation(self.sequences)
        start = int(order[place]) * self.sequence_length
        row = self.tokens.ids[start : start + self.sequence_length]
        first = self.tokens.first
        return row if first is None else np.concatenate([np.array([first], np.int32), row[1:]])

    def steps(self, tokens: int | None, steps: int | None, accumulation: int, processes: int) -> int:
        """Optimiser steps of a stage given in tokens or steps."""
        if steps is not None:
            return steps
        assert tokens is not None
        per_step = self.sequence_length * self.batch_size * accumulation * processes
        return max(1, math.ceil(tokens / per_step))


def save_tokens(path: Path, tokens: Tokens) -> None:
    """Keep a token stream on disk, so that a resumed run sees the same.

    Raises:
        StorageError: when it cannot be written.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        first = -1 if tokens.first is None else tokens.first
        np.savez(file, ids=tokens.ids, source=np.asarray(tokens.source), first=np.asarray(first))


def load_tokens(path: Path) -> Tokens:
    """Inverse of :func:`save_tokens`.

    Raises:
        InputError: when the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            first = int(file["first"]) if "first" in file else -1
            return Tokens(ids=file["ids"], source=str(file["source"]), first=None if first < 0 else first)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{path}: damaged token cache: {error}", hint="Delete the file and run again."
        ) from error
