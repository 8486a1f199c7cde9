"""Cross attention over a summary of the source that no longer grows: read once, then of constant size."""

import torch
from torch import Tensor

from lineahead.plugins.augmented_attention import feature_maps
from lineahead.plugins.augmented_attention.blend import blend
from lineahead.plugins.augmented_attention.schema import AttentionSettings
from lineahead.plugins.augmented_attention.step import normalised, without_autocast


@without_autocast
def summarise(
    key: Tensor,
    value: Tensor,
    key_map: Tensor,
    *,
    settings: AttentionSettings,
    scale: float,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum phi(k) v^T and phi(k) over a source text; the only pass over its keys.

    Args:
        key: ``[B, Hkv, N, D]``.
        value: ``[B, Hkv, N, Dv]``.
        key_map: ``[Hkv, D, M]``; any tensor when the feature map has no weights.
        settings: the operator's settings, as ``roles.role_settings`` gives them.
        scale: multiplier of ``q . k`` in feature maps of it.
        valid: ``[B, N]`` bool, False at padding, anywhere; None without padding.

    Returns:
        state ``[B, Hkv, F, Dv]`` and norm ``[B, Hkv, F]``, at least float32.
    """
    compute = torch.promote_types(key.dtype, torch.float32)
    key = normalised(key, settings)
    features = feature_maps.get(settings.feature_map).apply(key.to(compute), key_map.to(compute), scale)
    values = value.to(compute)
    if valid is not None:
        zero = torch.zeros((), dtype=compute, device=key.device)
        kept = valid[:, None, :, None]
        features, values = torch.where(kept, features, zero), torch.where(kept, values, zero)
    return features.transpose(2, 3) @ values, features.sum(2)


@without_autocast
def cross_attention(
    query: Tensor,
    state: Tensor,
    norm: Tensor,
    alpha: Tensor,
    query_map: Tensor,
    *,
    settings: AttentionSettings,
    scale: float,
) -> Tensor:
    """Attend from every query to the whole source: the operator with nothing local and no convolution.

    Position i of a target has no group in the source, so every source key is far from it, and a convolution
    over the source's values at the target's positions would mean nothing.

    Args:
        query: ``[B, H, T, D]``.
        state: ``[B, Hkv, F, Dv]``, from :func:`summarise`.
        norm: ``[B, Hkv, F]``; used under a denominator only.
        alpha: ``[H]``, weight of the sum.
        query_map: ``[H, D, M]``; any tensor when the feature map has no weights.
        settings: the operator's settings, as ``roles.role_settings`` gives them.
        scale: multiplier of ``q . k`` in feature maps of it.

    Returns:
        ``[B, H, T, Dv]`` in query's dtype.

    Source: You et al., 2024, arXiv:2406.07368, section 4 (T5: the non-causal global sum).
    """
    batch, heads, nodes, _ = query.shape
    compute, shared = torch.promote_types(query.dtype, torch.float32), state.shape[1]
    queries = normalised(query, settings).to(compute)
    features = feature_maps.get(settings.feature_map).apply(queries, query_map.to(compute), scale)
    features = features.reshape(batch, shared, heads // shared * nodes, -1)
    zero = torch.zeros((), dtype=compute, device=query.device)
    total = (features @ norm.unsqueeze(-1)).reshape(batch, heads, nodes, 1) if settings.has_norm else zero
    output = blend(
        zero, zero, (features @ state).reshape(batch, heads, nodes, -1), total,
        local_scale=zero, alpha=alpha.to(compute)[:, None, None], filters=zero,
        attend=lambda weights: weights, settings=settings,
    )  # fmt: skip
    return output.to(query.dtype)
