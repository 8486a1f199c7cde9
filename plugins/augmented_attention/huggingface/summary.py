"""A transformers cache layer for converted cross attention: a summary of the source, read once."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lineahead.plugins.augmented_attention.huggingface.fixed_layer import FixedSizeLayer
from lineahead.plugins.augmented_attention.module import CrossAttention


class SummaryLayer(FixedSizeLayer):
    """Cache layer of one converted cross attention layer.

    transformers hands the source's keys and values over once; the attention function sums them up, and what
    is kept does not depend on the lengths of source and target.
    """

    is_croppable = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.summary: tuple[Tensor, Tensor] | None = None

    def attend(
        self,
        operator: CrossAttention,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        valid: Tensor | None,
    ) -> Tensor:
        """Sum the source up if this is the first call; attend to the summary.

        Args:
            operator: the layer's parameters.
            query: ``[B, H, T, D]``.
            key: ``[B, Hkv, N, D]``, the source's; not read again after the first call.
            value: ``[B, Hkv, N, Dv]``.
            scaling: the attention layer's multiplier of ``q . k``.
            valid: ``[B, N]`` bool, False at the source's padding; None without padding.

        Returns:
            ``[B, H, T, Dv]``.
        """
        if self.summary is None:
            self.summary = operator.summarise(key, value, scaling, valid)
            self.keys, self.values = key[:, :, :0], value[:, :, :0]  # what transformers hands on from now on
            self.is_initialized = True
        return operator.attend(query, *self.summary, scaling)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Hand the source's rows on: nothing is stored here."""
        return key_states, value_states

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the summary is made by the first :meth:`attend`."""

    def crop(self, tokens_to_remove: int) -> None:
        """Nothing to do: no target token is in the summary."""

    def activate_past_recording(self) -> None:
        """Nothing to do: there is nothing to undo."""

    def get_seq_length(self) -> int:
        """Whether the source has been read, as transformers asks."""
        return int(self.summary is not None)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Width and offset of a mask, which nothing here needs."""
        return query_length, 0

    def reset(self) -> None:
        """Forget the source."""
        self.summary, self.is_initialized = None, False

    @property
    def nbytes(self) -> int:
        """Bytes held: the same for every source."""
        return sum(x.numel() * x.element_size() for x in self.summary or ())

    def offload(self) -> None:
        """Nothing to do: the summary is small."""

    def prefetch(self) -> None:
        """Nothing to do: the summary is never offloaded."""

    def _rows(self, pick: Callable[[Tensor], Tensor]) -> None:
        if self.summary is not None:
            self.summary = (pick(self.summary[0]), pick(self.summary[1]))
            assert self.keys is not None
            assert self.values is not None
            self.keys, self.values = pick(self.keys), pick(self.values)


def source_columns(mask: Tensor | None, length: int) -> Tensor | None:
    """Which of `length` columns hold tokens, from any mask of two-sided or cross attention.

    Args:
        mask: None (no padding); ``[B, N]`` with nonzero at tokens; or ``[B, 1, T, N]``, bool or additive, the
            same for every query.
        length: N; another length than the mask's means that the source was read before.

    Returns:
        ``[B, N]`` bool, or None when all are tokens.
    """
    if mask is None or mask.shape[-1] != length:
        return None
    valid = mask.bool() if mask.dim() == 2 else _visible(mask)[:, 0, 0]
    return None if bool(valid.all()) else valid


def _visible(mask: Tensor) -> Tensor:
    return mask if mask.dtype == torch.bool else mask == 0
