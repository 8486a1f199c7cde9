"""Per-token reference: a Python loop in float64, slow on purpose; the oracle of all forms."""

import torch
from torch import Tensor

from lineahead.plugins.augmented_attention import feature_maps
from lineahead.plugins.augmented_attention.local_kernels import LOCAL_KERNELS
from lineahead.plugins.augmented_attention.normalizers import NORMALIZERS
from lineahead.plugins.augmented_attention.schema import AttentionSettings, require_causal


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
        dtype: every operation runs in it, but for the normalizer's factor, which takes float32 at least.

    Returns:
        ``[B, H, N, Dv]`` in `dtype`.

    Raises:
        SettingsError: for bidirectional settings.

    Source: You et al., 2024, arXiv:2406.07368, section 4; other methods as their files in ``methods`` say.
    """
    require_causal(settings, "the per-token reference")
    query, key, value, alpha, local_scale, conv = (
        x.to(dtype) for x in (query, key, value, alpha, local_scale, conv)
    )
    if settings.qk_norm:
        query, key = (_unit(x, settings.eps) for x in (query, key))
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
    kernel = LOCAL_KERNELS.named(settings.local).weigh if settings.local != "none" else None
    near_q, near_k, near_scale = q, k, scale
    if settings.local_norm:
        near_q, near_k, near_scale = _unit(q, settings.eps), _unit(k, settings.eps), 1.0

    def phi(x: Tensor, weight: Tensor | None) -> Tensor:
        assert feature_map is not None
        return feature_map.apply(x[None, None, None], weight, scale)[0, 0, 0]

    outputs = []
    for i in range(q.shape[0]):
        local = [_is_local(settings, i, j) for j in range(i + 1)]
        near, far = torch.zeros_like(v[: i + 1, 0]), torch.zeros_like(v[: i + 1, 0])
        if kernel is not None and any(local):
            scores = torch.stack([near_scale * (near_q[i] @ near_k[j]) for j in range(i + 1) if local[j]])
            weights = iter(kernel(scores, torch.ones_like(scores, dtype=torch.bool)))
            near = torch.stack([next(weights) if local[j] else near[j] for j in range(i + 1)])
        if feature_map is not None:
            query_features = phi(q[i], query_map)
            far = torch.stack(
                [far[j] if local[j] else query_features @ phi(k[j], key_map) for j in range(i + 1)]
            )
        out = _normalized(near, far, v[: i + 1], local_scale, alpha, settings)
        for t in range(min(settings.conv_taps, i + 1)):
            out = out + conv[t] * v[i - t]
        outputs.append(out)
    return torch.stack(outputs)


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
    return settings.pattern == "sliding" and i - j < settings.window
