"""Padding: the operator counts tokens, so each row's tokens are moved to the front, and its outputs back."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Where each row's tokens are.

    Attributes:
        valid: ``[B, T]`` bool, True for tokens, False for padding.
        order: ``[B, T]`` int64, columns with tokens first, in order.
        inverse: ``[B, T]`` int64, the inverse permutation.
    """

    valid: Tensor
    order: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, valid: Tensor) -> "Packing":
        """The packing of ``valid [B, T]``."""
        order = torch.argsort((~valid).to(torch.int8), dim=1, stable=True)
        return cls(valid=valid, order=order, inverse=torch.argsort(order, dim=1))

    def pack(self, x: Tensor) -> Tensor:
        """Tokens of ``x [B, H, T, D]`` to the front of each row; padding follows."""
        return _take(x, self.order)

    def unpack(self, x: Tensor) -> Tensor:
        """Inverse of :meth:`pack`, with zeros at padding."""
        spread = _take(x, self.inverse)
        return torch.where(
            self.valid[:, None, :, None], spread, torch.zeros((), dtype=x.dtype, device=x.device)
        )


def token_columns(mask: Tensor | None, length: int) -> Tensor | None:
    """Which of the last `length` columns hold tokens, from any mask that an attention layer may be given.

    Args:
        mask: None (no padding); ``[B, N]`` with nonzero at tokens; or ``[B, 1, T, N]``, bool or additive,
            causal: a token always sees itself, padding is seen by nobody, so the diagonal tells them apart.
        length: T.

    Returns:
        ``[B, T]`` bool, or None when all are tokens.
    """
    if mask is None:
        return None
    if mask.dim() == 2:
        valid = mask[:, -length:].bool()
    else:
        visible = mask if mask.dtype == torch.bool else mask == 0
        valid = visible[:, 0, -length:].diagonal(offset=visible.shape[-1] - length, dim1=-2, dim2=-1)
    return None if bool(valid.all()) else valid


def _take(x: Tensor, order: Tensor) -> Tensor:
    return x.gather(2, order[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
