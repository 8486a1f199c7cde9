"""A training batch: rows of one text each, or of several that know nothing of each other."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lineahead.plugins.augmented_attention.huggingface.attention import several_texts

PADDING = -1


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What a pass reads.

    Attributes:
        ids: ``[B, N]`` int64 token ids, any id at padding.
        positions: ``[B, N]`` int64, each token's place in its text; None where a row is one text.
        real: ``[B, N]`` bool, False at padding; None without padding.
    """

    ids: Tensor
    positions: Tensor | None = None
    real: Tensor | None = None

    @classmethod
    def of(cls, batch: Tensor) -> "Rows":
        """Rows of a batch: ids ``[B, N]``, or ``[B, 2, N]``: ids, -1 at padding, and positions."""
        if batch.dim() == 2:
            return cls(ids=batch)
        ids, positions = batch.unbind(1)
        return cls(ids=ids.clamp(min=0), positions=positions, real=ids != PADDING)

    @property
    def predicted(self) -> Tensor | None:
        """``[B, N - 1]`` bool: whether the next token is of the same text; None where it always is."""
        if self.positions is None or self.real is None:
            return None
        follows: Tensor = self.positions[:, 1:] == self.positions[:, :-1] + 1
        return follows & self.real[:, 1:]

    def hidden(self, model: PreTrainedModel) -> Tensor:
        """The last hidden states ``[B, N, E]`` of `model`, in whatever mode it is."""
        if self.positions is None:
            found: Tensor = model.base_model(input_ids=self.ids, use_cache=False).last_hidden_state
            return found
        with several_texts(self.positions):
            found = model.base_model(
                input_ids=self.ids, position_ids=self.positions, use_cache=False
            ).last_hidden_state
        return found


def counted(hidden: Tensor, rows: Rows) -> Tensor:
    """The hidden states ``[M, E]`` that predict a token, of ``[B, N, E]``."""
    chosen = rows.predicted
    return hidden[:, :-1].flatten(0, 1) if chosen is None else hidden[:, :-1][chosen]


def targets(rows: Rows) -> Tensor:
    """The tokens ``[M]`` that they predict."""
    chosen = rows.predicted
    return rows.ids[:, 1:].flatten() if chosen is None else rows.ids[:, 1:][chosen]


def squared_error(found: Tensor, wanted: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """Sums of ``(found - wanted)^2`` and ``wanted^2`` over heads and real tokens, of ``[B, H, N, D]``."""
    if rows.real is not None:
        keep = rows.real[:, None, :, None]
        zero = torch.zeros((), dtype=wanted.dtype, device=wanted.device)
        found, wanted = torch.where(keep, found, zero), torch.where(keep, wanted, zero)
    return (found - wanted).square().sum(), wanted.square().sum()
