"""The training form: whole texts, parallel over groups, differentiable; equals the step form on a chain."""

import torch
from torch import Tensor
from torch.nn import functional

from lineahead.plugins.augmented_attention import feature_maps
from lineahead.plugins.augmented_attention.blend import blend
from lineahead.plugins.augmented_attention.local_kernels import LOCAL_KERNELS
from lineahead.plugins.augmented_attention.products import dot, filtered
from lineahead.plugins.augmented_attention.schema import AttentionSettings, require_causal
from lineahead.plugins.augmented_attention.step import normalised, unit, without_autocast


@without_autocast
def parallel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    alpha: Tensor,
    local_scale: Tensor,
    conv: Tensor,
    query_map: Tensor,
    key_map: Tensor,
    *,
    settings: AttentionSettings,
    scale: float,
    narrow: bool = False,
    starts: Tensor | None = None,
) -> Tensor:
    """Causal augmented attention of whole texts from position 0, ``O(N)`` in time and memory.

    Args:
        query: ``[B, H, N, D]``, after RoPE.
        key: ``[B, Hkv, N, D]``.
        value: ``[B, Hkv, N, Dv]``.
        alpha: ``[H]``.
        local_scale: ``[H]``.
        conv: ``[H, taps]``.
        query_map: ``[H, D, M]``; any tensor when the feature map has no weights.
        key_map: ``[Hkv, D, M]``; likewise.
        settings: the operator's settings.
        scale: multiplier of ``q . k``, in the local kernel (1 there under `local_norm`) and in maps of it.
        starts: ``[B, chunks]`` int64, for rows of several texts, each of which begins where a chunk of
            `window` tokens does: number of the chunk in which each chunk's text begins. What follows a
            text's end in its last chunk is nobody's past. Costs a product over pairs of chunks.
        narrow: take the products of bfloat16 operands, except inside feature maps; sums stay float32.

    Returns:
        ``[B, H, N, Dv]`` in query's dtype.

    Raises:
        SettingsError: for bidirectional settings.

    Source: You et al., 2024, arXiv:2406.07368, section 4 (groups); the state of group g is the exclusive sum
        over groups.
    """
    require_causal(settings, "the training form")
    batch, heads, length, _ = query.shape
    shared, size = key.shape[1], settings.window
    compute, dtype = torch.promote_types(query.dtype, torch.float32), query.dtype
    query, key = normalised(query, settings), normalised(key, settings)
    back = 1 if settings.pattern == "sliding" else 0  # earlier chunks that a local window can reach
    extra = -length % size
    query, key, value = (functional.pad(x.to(compute), (0, 0, 0, extra)) for x in (query, key, value))
    chunks = (length + extra) // size

    def split(x: Tensor) -> Tensor:  # [B, H', N, X] -> [B, Hkv, H' / Hkv, chunks, size, X]
        return x.reshape(batch, shared, -1, chunks, size, x.shape[-1])

    def per_head(x: Tensor) -> Tensor:  # [H] -> [Hkv, R, 1, 1, 1]
        return x.to(compute).reshape(shared, -1, 1, 1, 1)

    v = split(value)
    v_near = _local_rows(settings, v, back, starts)
    first = _first_positions(chunks, size, query.device, starts)
    visible, mask = _chunk_masks(settings, first, back)
    zero = torch.zeros((), dtype=compute, device=query.device)
    near, far, remote, total = zero, zero, zero, zero
    if settings.has_state:
        phi = feature_maps.get(settings.feature_map).apply
        q_features, k_features = (
            split(phi(query, query_map.to(compute), scale)),
            split(phi(key, key_map.to(compute), scale)),
        )
        if back or settings.pattern == "none":
            far = dot(q_features, _local_rows(settings, k_features, back, starts).mT, narrow=narrow)
            far = torch.where(visible & ~mask, far, zero)
        if settings.sinks:
            kept = first + torch.arange(size, device=query.device)[:, None] >= settings.sinks
            k_features = torch.where(kept, k_features, zero)
        state = _earlier_chunks(dot(k_features.mT, v, narrow=narrow), back, starts)
        remote = dot(q_features, state, narrow=narrow)
        if settings.has_norm:
            norm = _earlier_chunks(k_features.sum(-2).unsqueeze(-1), back, starts)
            total = dot(q_features, norm, narrow=narrow)
    if settings.local != "none":
        if settings.local_norm:
            query, key, scale = unit(query, settings.eps), unit(key, settings.eps), 1.0
        rows = _local_rows(settings, split(key), back, starts)
        scores = dot(split(query), rows.mT, narrow=narrow) * scale
        near = torch.where(
            visible & mask, LOCAL_KERNELS.named(settings.local).weigh(scores, visible & mask), zero
        )
    output = blend(
        near, far, remote, total,
        local_scale=per_head(local_scale) if settings.local != "none" else zero,
        alpha=per_head(alpha) if settings.has_state else zero,
        filters=zero, attend=lambda weights: dot(weights, v_near, narrow=narrow), settings=settings,
    )  # fmt: skip
    if settings.conv_taps:
        reach = -(-(settings.conv_taps - 1) // size)
        filters = _toeplitz(conv.to(compute), size, reach).unflatten(0, (shared, -1))
        output = output + filtered(filters, _own_text(with_previous(v, reach), first, reach), narrow=narrow)
    return output.reshape(batch, heads, chunks * size, -1)[:, :, :length].to(dtype)


def with_previous(x: Tensor, count: int) -> Tensor:
    """Prepend to each chunk the `count` before it: ``[..., chunks, size, X]``, size times (count + 1)."""
    if not count:
        return x
    padded = functional.pad(x, (0, 0, 0, 0, count, 0))
    chunks = x.shape[-3]
    return torch.cat([padded.narrow(-3, i, chunks) for i in range(count + 1)], -2)


def _local_rows(settings: AttentionSettings, x: Tensor, back: int, starts: Tensor | None) -> Tensor:
    """Rows that a chunk's queries meet one by one: `back` earlier chunks, the chunk itself, the sinks."""
    rows = with_previous(x, back)
    if not settings.sinks:
        return rows
    every = x.flatten(-3, -2)
    sinks = every[..., : settings.sinks, :].unsqueeze(-3).expand(*x.shape[:-2], -1, -1)
    if starts is not None:
        row = starts[..., None] * x.shape[-2] + torch.arange(sinks.shape[-2], device=x.device)
        row = row.clamp(max=every.shape[-2] - 1).flatten(1)[:, None, None, :, None]
        sinks = every.gather(-2, row.expand(*every.shape[:-2], -1, every.shape[-1])).view(sinks.shape)
    return torch.cat([rows, sinks], -2)


def _own_text(rows: Tensor, first: Tensor, back: int) -> Tensor:
    """Zero for rows before a text's first one; where a row is one text they are zero already."""
    if first.dim() == 3:
        return rows
    size = rows.shape[-2] // (back + 1)
    column = first + torch.arange(-back * size, size, device=rows.device)[:, None]
    return torch.where(column >= 0, rows, torch.zeros((), dtype=rows.dtype, device=rows.device))


def _earlier_chunks(x: Tensor, back: int, starts: Tensor | None) -> Tensor:
    """Sum over a text's chunks before each chunk's local reach; the chunk axis is 3.

    A shifted scan, or with several texts in a row a product, in which other texts' chunks do not count.
    """
    if starts is not None:
        number = torch.arange(starts.shape[1], device=x.device)
        same = (starts[:, None] == starts[..., None]) & (number < number[:, None] - back)
        return (same.to(x.dtype)[:, None, None] @ x.flatten(4)).view(x.shape)
    shifted = torch.roll(x, 1 + back, 3).clone()
    shifted[:, :, :, : 1 + back] = 0
    return shifted.cumsum(3)


def _first_positions(chunks: int, size: int, device: torch.device, starts: Tensor | None) -> Tensor:
    """Position in its text of each chunk's first token: ``[chunks, 1, 1]`` or ``[B, 1, 1, chunks, 1, 1]``."""
    number = torch.arange(chunks, device=device)
    if starts is None:
        return number[:, None, None] * size
    return ((number - starts) * size)[:, None, None, :, None, None]


def _chunk_masks(settings: AttentionSettings, first: Tensor, back: int) -> tuple[Tensor, Tensor]:
    """(visible, local) of a chunk's queries and its `_local_rows`, both ``[..., chunks, size, rows]``."""
    size, sinks, chunks, device = settings.window, settings.sinks, first.shape[-3], first.device
    row = first + torch.arange(size, device=device)[:, None]
    column = first + torch.arange(-back * size, size, device=device)
    visible = (column <= row) & (column >= sinks)
    if settings.pattern == "sliding":
        near = row - column < size
    else:
        near = torch.full_like(visible, settings.pattern == "grouped")
    if sinks:
        sink = torch.arange(min(sinks, chunks * size), device=device).expand(*first.shape[:-1], -1)
        visible = torch.cat([visible, sink <= row], -1)
        near = torch.cat([near, torch.ones_like(sink <= row)], -1)
    return visible, near


def _toeplitz(conv: Tensor, size: int, reach: int) -> Tensor:
    """Convolution as a matrix over a chunk and `reach` earlier ones, ``[H, size, (reach + 1) size]``."""
    taps = conv.shape[1]
    row = torch.arange(size, device=conv.device)[:, None] + reach * size
    lag = row - torch.arange((reach + 1) * size, device=conv.device)
    table = functional.pad(conv, (0, 1))
    return table[:, torch.where((lag >= 0) & (lag < taps), lag, taps)]
