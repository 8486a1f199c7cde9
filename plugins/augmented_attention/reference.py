"""Per-token reference: a Python loop in float64, slow on purpose; the oracle of all forms."""

import torch
from torch import Tensor

from lineahead.plugins.augmented_attention import feature_maps
from lineahead.plugins.augmented_attention.schema import AttentionSettings


def augmented_attention_ref(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    alpha: Tensor,
    local_scale: Tensor,
    conv: Tensor,
    query_map: Tensor | None,
    key_map: Tensor | None,
    *,
    settings: AttentionSettings,
    scale: float,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Causal augmented attention of one text per batch row, token by token.

    Args:
        query: ``[B, H, N, D]``, after RoPE.
        key: ``[B, Hkv, N, D]``.
        value: ``[B, Hkv, N, Dv]``.
        alpha: ``[H]``, weight of the global term.
        local_scale: ``[H]``, weight of the local term.
        conv: ``[H, taps]``; ``conv[:, t]`` weighs the value t tokens back.
        query_map: ``[H, D, M]``, the feature map's projection, or None.
        key_map: ``[Hkv, D, M]`` or None.
        settings: the operator's settings.
        scale: multiplier of ``q . k``.
        dtype: every operation runs in it.

    Returns:
        ``[B, H, N, Dv]`` in `dtype`.

    Source: You et al., 2024, arXiv:2406.07368, section 4; reference form of ``method.md`` sections 1 and 4.
    """
    query, key, value, alpha, local_scale, conv = (
        x.to(dtype) for x in (query, key, value, alpha, local_scale, conv)
    )
    if settings.qk_norm:
        query, key = (x / (x.square().sum(-1, keepdim=True) + settings.eps).sqrt() for x in (query, key))
    heads, shared = query.shape[1], key.shape[1]
    rows = [
        [
            _head(
                query[b, h],
                key[b, h * shared // heads],
                value[b, h * shared // heads],
                alpha[h],
                local_scale[h],
                conv[h],
                None if query_map is None else query_map[h : h + 1].to(dtype),
                None if key_map is None else key_map[h * shared // heads][None].to(dtype),
                settings,
                scale,
            )
            for h in range(heads)
        ]
        for b in range(query.shape[0])
    ]
    return torch.stack([torch.stack(row) for row in rows])


def _head(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    alpha: Tensor,
    local_scale: Tensor,
    conv: Tensor,
    query_map: Tensor | None,
    key_map: Tensor | None,
    settings: AttentionSettings,
    scale: float,
) -> Tensor:
    """One head of one text: q ``[N, D]``, k ``[N, D]``, v ``[N, Dv]``."""
    feature_map = feature_maps.get(settings.feature_map) if settings.has_state else None

    def phi(x: Tensor, weight: Tensor | None) -> Tensor:
        assert feature_map is not None
        return feature_map.apply(x[None, None, None], weight)[0, 0, 0]

    outputs = []
    for i in range(q.shape[0]):
        weights, scores = [], [scale * (q[i] @ k[j]) for j in range(i + 1)]
        local = [_is_local(settings, i, j) for j in range(i + 1)]
        near_scores = [s for s, near in zip(scores, local, strict=True) if near]
        shift = torch.stack(near_scores).max() if near_scores else 0.0
        for j in range(i + 1):
            if not local[j]:
                far = phi(q[i], query_map) @ phi(k[j], key_map) if feature_map else torch.zeros_like(alpha)
                weights.append(alpha * far)
            elif settings.local == "softmax":
                weights.append(local_scale * (scores[j] - shift).exp())
            else:
                weights.append(local_scale * scores[j].clamp(min=0) ** 2)
        total = torch.stack(weights)
        out = total @ v[: i + 1]
        if settings.normalizer == "denominator":
            out = out / (total.sum() + settings.eps)
        for t in range(min(settings.conv_taps, i + 1)):
            out = out + conv[t] * v[i - t]
        outputs.append(out)
    return torch.stack(outputs)


def _is_local(settings: AttentionSettings, i: int, j: int) -> bool:
    if j < settings.sinks:
        return True
    if settings.pattern == "grouped":
        return i // settings.window == j // settings.window
    return settings.pattern == "sliding" and i - j < settings.window
