"""Linformer's global term: softmax over M learned mixtures of all keys; two-sided by nature."""

import torch
from torch import Tensor

from lineahead.errors import InputError
from lineahead.plugins.augmented_attention.schema import AttentionSettings, LayerShape

LINFORMER = "linformer"


def initial_mixtures(settings: AttentionSettings, shape: LayerShape) -> Tensor:
    """``[Hkv, L, M]`` of variance 1 / M, so that products of mixtures are those of keys on average.

    Source: Wang et al., 2020, arXiv:2006.04768, theorem 2.
    """
    columns = settings.feature_dim or shape.head_dim
    mixture: Tensor = torch.randn(shape.kv_heads, shape.positions, columns) * float(columns) ** -0.5
    return mixture


def mixtures(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    value_mixture: Tensor,
    key_mixture: Tensor,
    *,
    scale: float,
    valid: Tensor,
) -> tuple[Tensor, Tensor]:
    """Numerator and denominator of ``softmax(scale q (E K)^T) (F V)``, up to one factor per row.

    A text of N < L tokens uses the first N rows of E and F, which is the same as L - N rows of zeros after
    it; padding counts as such rows. So a text gives the same in any batch.

    Args:
        query: ``[B, H, N, D]`` float32 or float64, like all others.
        key: ``[B, Hkv, N, D]``.
        value: ``[B, Hkv, N, Dv]``, zero at padding.
        value_mixture: F, ``[Hkv, L, M]``: mixture m takes F[t, m] of token t.
        key_mixture: E, ``[Hkv, L, M]``.
        scale: multiplier of ``q . k``.
        valid: ``[B, N]`` bool, False at padding.

    Returns:
        ``[B, H, N, Dv]`` and ``[B, H, N, 1]``.

    Raises:
        InputError: when N is more than L.

    Source: Wang et al., 2020, arXiv:2006.04768, eq. 7.
    """
    length, longest = query.shape[2], key_mixture.shape[1]
    if length > longest:
        raise InputError(
            f"a text of {length} tokens: Linformer's mixtures end at {longest}",
            hint="Shorten the texts, or convert with more positions.",
        )
    heads, shared = query.shape[1], key.shape[1]
    key = torch.where(valid[:, None, :, None], key, torch.zeros((), dtype=key.dtype, device=key.device))
    keys, values = (
        mixture[:, :length].to(x.dtype).transpose(1, 2) @ x
        for mixture, x in ((key_mixture, key), (value_mixture, value))
    )  # [B, Hkv, M, D]
    keys, values = (x.repeat_interleave(heads // shared, 1) for x in (keys, values))
    scores = query @ keys.transpose(2, 3) * scale
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return weights @ values, weights.sum(-1, keepdim=True)
