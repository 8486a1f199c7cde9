"""Per-token reference: a Python loop in float64, slow on purpose; the oracle of all forms."""

import torch
from torch import Tensor

from lineahead.plugins.augmented_attention import feature_maps
from lineahead.plugins.augmented_attention.linformer import LINFORMER
from lineahead.plugins.augmented_attention.local_kernels import LOCAL_KERNELS
from lineahead.plugins.augmented_attention.normalizers import NORMALIZERS
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
    """Augmented attention of one text per batch row, token by token, causal or two-sided.

    Args:
        query: ``[B, H, N, D]``, after RoPE.
        key: ``[B, Hkv, N, D]``.
        value: ``[B, Hkv, N, Dv]``.
        alpha: ``[H]``, weight of the global term.
        local_scale: ``[H]``, weight of the local term.
        conv: ``[H, taps]``; ``conv[:, t]`` weighs the value t tokens back. Two-sided: ``[H, 2 taps - 1]`` and
            ``conv[:, taps - 1 + t]``.
        query_map: ``[H, D, M]``, the feature map's projection, or None; Linformer's F ``[Hkv, L, M]``.
        key_map: ``[Hkv, D, M]`` or None; Linformer's E.
        settings: the operator's settings.
        scale: multiplier of ``q . k``.
        dtype: every operation runs in it, but for the normalizer's factor, which takes float32 at least.

    Returns:
        ``[B, H, N, Dv]`` in `dtype`.

    Source: You et al., 2024, arXiv:2406.07368, section 4; other methods as their files in ``methods`` say.
    """
    query, key, value, alpha, local_scale, conv = (
        x.to(dtype) for x in (query, key, value, alpha, local_scale, conv)
    )
    if settings.qk_norm:
        query, key = (_unit(x, settings.eps) for x in (query, key))
    heads, shared = query.shape[1], key.shape[1]
    if settings.feature_map == LINFORMER and query_map is not None:
        query_map = query_map.repeat_interleave(heads // shared, 0)
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
    kernel = LOCAL_KERNELS.named(settings.local).weigh if settings.local != "none" else None
    near_q, near_k, near_scale = q, k, scale
    if settings.local_norm:
        near_q, near_k, near_scale = _unit(q, settings.eps), _unit(k, settings.eps), 1.0

    def phi(x: Tensor, weight: Tensor | None) -> Tensor:
        assert feature_map is not None
        return feature_map.apply(x[None, None, None], weight, scale)[0, 0, 0]

    outputs = []
    for i in range(q.shape[0]):
        seen = range(i + 1 if settings.causal else q.shape[0])
        local, values = [_is_local(settings, i, j) for j in seen], v[: len(seen)]
        near, far = torch.zeros_like(values[:, 0]), torch.zeros_like(values[:, 0])
        if kernel is not None and any(local):
            scores = torch.stack([near_scale * (near_q[i] @ near_k[j]) for j in seen if local[j]])
            weights = iter(kernel(scores, torch.ones_like(scores, dtype=torch.bool)))
            near = torch.stack([next(weights) if local[j] else near[j] for j in seen])
        if settings.feature_map == LINFORMER:
            assert query_map is not None
            assert key_map is not None
            mixed = _mixture(q[i], k, v, query_map[0], key_map[0], scale, settings.eps)
            alone = settings.normalizes == "all"
            out = mixed if alone else local_scale * (near @ values) + alpha * mixed
        else:
            if feature_map is not None:
                query_features = phi(q[i], query_map)
                far = torch.stack([far[j] if local[j] else query_features @ phi(k[j], key_map) for j in seen])
            out = _normalized(near, far, values, local_scale, alpha, settings)
        ahead = 0 if settings.causal else settings.conv_taps - 1  # places of the filter before its centre
        for t in range(-ahead, settings.conv_taps):
            if 0 <= i - t < q.shape[0]:
                out = out + conv[ahead + t] * v[i - t]
        outputs.append(out)
    return torch.stack(outputs)


def _mixture(
    q: Tensor, k: Tensor, v: Tensor, value_mixture: Tensor, key_mixture: Tensor, scale: float, eps: float
) -> Tensor:
    """Linformer's row ``[Dv]`` of one query ``[D]``, mixture by mixture, each a sum over the tokens."""
    scores, rows = [], []
    for m in range(key_mixture.shape[1]):
        mixed_key, mixed_value = torch.zeros_like(k[0]), torch.zeros_like(v[0])
        for j in range(len(k)):
            mixed_key = mixed_key + key_mixture[j, m] * k[j]
            mixed_value = mixed_value + value_mixture[j, m] * v[j]
        scores.append(scale * (q @ mixed_key))
        rows.append(mixed_value)
    weights = (torch.stack(scores) - torch.stack(scores).max()).exp()
    return weights @ torch.stack(rows) / (weights.sum() + eps)


def _normalized(
    near: Tensor, far: Tensor, v: Tensor, local_scale: Tensor, alpha: Tensor, settings: AttentionSettings
) -> Tensor:
    """One output row ``[Dv]`` from its weights ``[N]``; what `normalizes` names is normalised on its own."""

    def normalize(weights: Tensor) -> Tensor:
        row = weights @ v
        if settings.normalizer == "none":
            return row
        normalizer = NORMALIZERS.named(settings.normalizer)
        total = weights.sum().clamp(min=settings.floor) if settings.floor else weights.sum()
        basis = total[None] if normalizer.of == "weights" else row
        wide = torch.promote_types(row.dtype, torch.float32)  # 1 / eps is beyond 16 bits
        return (row * normalizer.factor(basis.to(wide), settings.eps)).to(row.dtype)

    if settings.normalizes == "global":
        return local_scale * (near @ v) + alpha * normalize(far)
    if settings.normalizes == "local":
        return local_scale * normalize(near) + alpha * (far @ v)
    return normalize(local_scale * near + alpha * far)


def _unit(x: Tensor, eps: float) -> Tensor:
    return x / (x.square().sum(-1, keepdim=True) + eps).sqrt()


def _is_local(settings: AttentionSettings, i: int, j: int) -> bool:
    if j < settings.sinks:
        return True
    if settings.pattern == "grouped":
        return i // settings.window == j // settings.window
    return settings.pattern == "sliding" and abs(i - j) < settings.window
