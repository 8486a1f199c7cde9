"""Products of the training form: the query heads of a key head in one, of float32 or of bfloat16 operands."""

from typing import Any

import torch
from torch import Tensor


def dot(left: Tensor, right: Tensor, *, narrow: bool) -> Tensor:
    """``left @ right``, `right` shared by the R query heads of a key head.

    One product of R times the rows, where broadcasting would copy `right` R times.

    Args:
        left: ``[B, Hkv, R, chunks, N, K]``.
        right: ``[B, Hkv, 1, chunks, K, M]``.
        narrow: see :func:`multiply`.

    Returns:
        ``[B, Hkv, R, chunks, N, M]``, a view in which chunks come before R.
    """
    batch, shared, copies, chunks, rows, inner = left.shape
    groups = batch * shared * chunks
    found = multiply(
        left.transpose(2, 3).reshape(groups, copies * rows, inner),
        right.reshape(groups, inner, right.shape[-1]),
        narrow=narrow,
    )
    return found.reshape(batch, shared, chunks, copies, rows, -1).transpose(2, 3)


def filtered(filters: Tensor, values: Tensor, *, narrow: bool) -> Tensor:
    """``filters @ values``, the same filters for every text and chunk.

    Args:
        filters: ``[Hkv, R, N, K]``.
        values: ``[B, Hkv, 1, chunks, K, M]``.
        narrow: see :func:`multiply`.

    Returns:
        ``[B, Hkv, R, chunks, N, M]``, a view.
    """
    batch, shared, _, chunks, inner, width = values.shape
    copies, rows = filters.shape[1:3]
    columns = values.reshape(batch, shared, chunks, inner, width).permute(1, 3, 0, 2, 4)
    found = multiply(
        filters.reshape(shared, copies * rows, inner), columns.reshape(shared, inner, -1), narrow=narrow
    )
    return found.reshape(shared, copies, rows, batch, chunks, width).permute(3, 0, 1, 4, 2, 5)


def multiply(left: Tensor, right: Tensor, *, narrow: bool) -> Tensor:
    """``left [G, N, K] @ right [G, K, M]``.

    Args:
        left: of float32 or wider.
        right: likewise.
        narrow: round the operands to bfloat16, those of the gradients too, and keep them so for the backward
            pass; sums stay float32.

    Returns:
        ``[G, N, M]`` in `left`'s type.
    """
    return _Narrow.apply(left, right) if narrow else torch.bmm(left, right)  # type: ignore[no-untyped-call]


class _Narrow(torch.autograd.Function):
    """The product of rounded operands and its gradients, which autograd lacks for wide sums."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
        left, right = left.bfloat16(), right.bfloat16()
        ctx.save_for_backward(left, right)
        return _wide(left, right)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        left, right = ctx.saved_tensors
        gradient = gradients[0].bfloat16()
        return _wide(gradient, right.mT), _wide(left.mT, gradient)


def _wide(left: Tensor, right: Tensor) -> Tensor:
    """The product of bfloat16 operands in float32; a CPU has no such product, and multiplies them widened."""
    if left.is_cuda:
        return torch.bmm(left, right, out_dtype=torch.float32)
    return torch.bmm(left.float(), right.float())
