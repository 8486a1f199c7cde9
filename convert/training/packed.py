"""Rows of several documents that know nothing of each other, each beginning at a multiple of the window."""

import itertools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lineahead.convert.training.data import Batches, Tokens
from lineahead.convert.training.rows import PADDING
from lineahead.errors import RecipeError
from lineahead.plugins.augmented_attention.huggingface.layers import LinearLayer
from lineahead.recipes.schema import Data, Stage

logger = logging.getLogger(__name__)
Piece = tuple[int, int, int]  # place in the row, first token in the stream, tokens


@dataclass(frozen=True, kw_only=True)
class DocumentBatches(Batches):
    """Like :class:`Batches`, over rows into which whole documents are laid, in the stream's order.

    A document that does not fit is cut; its rest is a text of its own in the next row. Batches are ``[B, 2,
    N]`` int64: ids, -1 at padding, and each token's position in its text, padding counting on.

    Attributes:
        separator: the token that ends a document.
        multiple: every text begins at a multiple of this.
    """

    separator: int
    multiple: int

    def __post_init__(self) -> None:
        """Refuse rows that are no whole number of windows.

        Raises:
            RecipeError: naming both lengths.
            InputError: when there is not enough text for a row.
        """
        super().__post_init__()
        if self.sequence_length % self.multiple:
            raise RecipeError(
                f"packing: documents with sequence_length {self.sequence_length}, "
                f"which is no multiple of the window {self.multiple}",
                hint="Choose a multiple.",
            )

    @property
    def sequences(self) -> int:
        """Rows in one pass."""
        return len(self._rows) if len(self.tokens.ids) >= self.sequence_length else 0

    @property
    def padding(self) -> float:
        """Share of the rows that holds no token."""
        used = sum(count for row in self._rows for _, _, count in row)
        return 1 - used / (len(self._rows) * self.sequence_length)

    @cached_property
    def _rows(self) -> list[list[Piece]]:
        ends = np.flatnonzero(self.tokens.ids == self.separator) + 1
        bounds = [0, *ends.tolist(), len(self.tokens.ids)]
        rows: list[list[Piece]] = [[]]
        place = 0
        for begin, end in itertools.pairwise(bounds):
            while end - begin > 1:  # one token alone predicts nothing
                if place >= self.sequence_length:
                    rows.append([])
                    place = 0
                count = min(end - begin, self.sequence_length - place)
                rows[-1].append((place, begin, count))
                begin += count
                place += -(-count // self.multiple) * self.multiple
        return rows

    def _row(self, position: int) -> NDArray[np.int32]:
        epoch, place = divmod(position, self.sequences)
        order = np.random.default_rng([self.seed, epoch]).permutation(self.sequences)
        row = np.full((2, self.sequence_length), PADDING, np.int32)
        pieces = self._rows[int(order[place])]
        for at, begin, count in pieces:
            row[0, at : at + count] = self.tokens.ids[begin : begin + count]
            if self.tokens.first is not None:
                row[0, at] = self.tokens.first
            row[1, at:] = np.arange(self.sequence_length - at)
        return row


def batches_of(
    data: Data,
    tokens: Tokens,
    stage: Stage,
    *,
    seed: int,
    layers: Sequence[LinearLayer],
    separator: int | None,
) -> Batches:
    """A stage's batches, packed as the recipe says.

    Args:
        data: the recipe's section.
        tokens: the stream.
        stage: its sequence length and batch size are used.
        seed: of the order.
        layers: the model's converted layers.
        separator: the tokenizer's end-of-text token.

    Raises:
        RecipeError: where documents cannot be told apart or kept apart.
        InputError: when there is not enough text for a row.
    """
    common: dict[str, Any] = {
        "tokens": tokens,
        "sequence_length": stage.sequence_length,
        "batch_size": stage.batch_size,
        "seed": seed,
    }
    if data.packing == "joined":
        return Batches(**common)
    if separator is None:
        raise RecipeError(
            "packing: documents, and the tokenizer has no end-of-text token", hint="Use packing: joined."
        )
    if not all(layer.settings.causal for layer in layers):
        raise RecipeError("packing: documents is for decoders", hint="Use packing: joined.")
    multiple = math.lcm(*(layer.settings.window for layer in layers))
    found = DocumentBatches(**common, separator=separator, multiple=multiple)
    logger.info("%d rows of documents, %.1f%% padding", found.sequences, 100 * found.padding)
    return found
