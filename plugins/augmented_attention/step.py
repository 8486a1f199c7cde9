"""The step form: commit the accepted rows of the previous call, then attend from every node of a tree.

It serves prefill (a chain, all of it accepted next time), decoding (one node), and chain or tree
verification. It is the eager operator, and the ONNX function body is a trace of it.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from lineahead.plugins.augmented_attention import feature_maps
from lineahead.plugins.augmented_attention.blend import blend
from lineahead.plugins.augmented_attention.local_kernels import LOCAL_KERNELS
from lineahead.plugins.augmented_attention.masks import (
    attended_rows,
    held_positions,
    is_local,
    tree_depth,
)
from lineahead.plugins.augmented_attention.schema import AttentionSettings, folded, require_causal

Committed = tuple[Tensor, Tensor, Tensor, Tensor]
Ports = ParamSpec("Ports")
Result = TypeVar("Result")


def without_autocast(form: Callable[Ports, Result]) -> Callable[Ports, Result]:
    """`form`, run with autocast off: autocast would round the sums to 16 bits along with the products."""

    @functools.wraps(form)
    def run(*ports: Ports.args, **settings: Ports.kwargs) -> Result:
        device = next(x.device.type for x in (*ports, *settings.values()) if isinstance(x, Tensor))
        if not torch.is_autocast_enabled(device):
            return form(*ports, **settings)
        with torch.autocast(device, enabled=False):
            return form(*ports, **settings)

    return run


def unit(x: Tensor, eps: float) -> Tensor:
    """L2-normalise the last axis."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)


def normalised(x: Tensor, settings: AttentionSettings) -> Tensor:
    """Rows of length 1 if the settings ask for them, rounded to the type in which they came."""
    if not settings.qk_norm:
        return x
    return unit(x.to(torch.promote_types(x.dtype, torch.float32)), settings.eps).to(x.dtype)


def pick(x: Tensor, row: Tensor) -> Tensor:
    """Rows of ``x [B, H, N, D]`` by index ``[B, M]``: ``[B, H, M, D]``."""
    return x.gather(2, row[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def commit(
    length: Tensor,
    accept_index: Tensor,
    accept_count: Tensor,
    state: Tensor,
    norm: Tensor,
    window_key: Tensor,
    window_value: Tensor,
    pending_key: Tensor,
    pending_value: Tensor,
    key_map: Tensor,
    *,
    settings: AttentionSettings,
    scale: float,
) -> Committed:
    """Append the accepted pending rows to the ring and fold what has left it into S; shapes as in `step`.

    Returns:
        state, norm, window_key, window_value after the commit. The inputs are not modified.
    """
    rows, total = settings.window_rows, length + accept_count
    keys = torch.cat([window_key, pick(pending_key, accept_index)], 2)
    values = torch.cat([window_value, pick(pending_value, accept_index)], 2)
    if settings.has_state:
        first, last = folded(settings, length)[:, None], folded(settings, total)[:, None]
        # At least one row, if only a masked one: a product over none, which ONNX Runtime fuses with the
        # transposition, returns before 1.32 what lies in memory.
        most = accept_index.shape[1] + max(1, settings.window - 1 if settings.pattern == "grouped" else 0)
        position = first + torch.arange(most, device=length.device)
        waiting = (rows + position - length[:, None]).clamp(max=keys.shape[2] - 1)
        row = torch.where(position < length[:, None], position % settings.ring_rows, waiting)
        fold = ((position < last) & (position >= settings.sinks))[:, None, :, None]
        zero = torch.zeros((), dtype=state.dtype, device=state.device)
        phi = feature_maps.get(settings.feature_map).apply
        features = phi(pick(keys, row).to(state.dtype), key_map.to(state.dtype), scale)
        features = torch.where(fold, features, zero)
        state = state + features.transpose(2, 3) @ torch.where(fold, pick(values, row).to(state.dtype), zero)
        if settings.has_norm:
            norm = norm + features.sum(2)
    arrived = held_positions(settings, total) - length[:, None]
    source = torch.where(arrived >= 0, arrived + rows, torch.arange(rows, device=length.device))
    return state, norm, pick(keys, source), pick(values, source)


@without_autocast
def step(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ancestors: Tensor,
    length: Tensor,
    accept_index: Tensor,
    accept_count: Tensor,
    state: Tensor,
    norm: Tensor,
    window_key: Tensor,
    window_value: Tensor,
    pending_key: Tensor,
    pending_value: Tensor,
    alpha: Tensor,
    local_scale: Tensor,
    conv: Tensor,
    query_map: Tensor,
    key_map: Tensor,
    *,
    settings: AttentionSettings,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Commit, then attend from T tree nodes. Nothing is written in place: an unaccepted node never existed.

    Ports that the settings leave unused (``norm`` without a denominator, ``state`` without a feature map,
    maps without weights, ``conv`` without taps) take any one-element tensor and pass through.

    Args:
        query: ``[B, H, T, D]`` float, after RoPE at position ``length + accept_count + depth``.
        key: ``[B, Hkv, T, D]``.
        value: ``[B, Hkv, T, Dv]``.
        ancestors: ``[B, T, T]`` bool; row i marks node i and its ancestors. A lower triangle is a chain.
        length: ``[B]`` int64, tokens committed before this call.
        accept_index: ``[B, A]`` int64, rows of the pending tensors in path order; padding is any valid row.
        accept_count: ``[B]`` int64, how many of them count.
        state: ``[B, Hkv, F, Dv]`` float32, the sum of phi(k) v^T over what has left the ring.
        norm: ``[B, Hkv, F]`` float32, the sum of phi(k).
        window_key: ``[B, Hkv, C, D]``; position p is in row p % ring_rows, and again in row ring_rows + p if
            it is a sink.
        window_value: ``[B, Hkv, C, Dv]``.
        pending_key: ``[B, Hkv, P, D]``, the previous call's keys as returned by it.
        pending_value: ``[B, Hkv, P, Dv]``, the previous call's values.
        alpha: ``[H]``.
        local_scale: ``[H]``.
        conv: ``[H, taps]``, ``conv[:, t]`` weighs the value t tokens back.
        query_map: ``[H, D, M]``.
        key_map: ``[Hkv, D, M]``.
        settings: the operator's settings.
        scale: multiplier of ``q . k``, in the local kernel (1 there under `local_norm`) and in maps of it.

    Returns:
        output ``[B, H, T, Dv]`` in query's dtype; state, norm, window_key, window_value after the commit; and
        pending_key ``[B, Hkv, T, D]``, to hand back (with `value`) in the next call.

    Raises:
        SettingsError: for bidirectional settings.

    Source: You et al., 2024, arXiv:2406.07368, section 4, made exact across group boundaries: a visible key
        of an earlier group is attended through the feature map before it is in S.
    """
    require_causal(settings, "the step form")
    batch, heads, nodes, _ = query.shape
    shared, compute = key.shape[1], torch.promote_types(query.dtype, torch.float32)
    query, key = normalised(query, settings), normalised(key, settings)
    state, norm, window_key, window_value = commit(
        length, accept_index, accept_count, state, norm, window_key, window_value, pending_key, pending_value,
        key_map, settings=settings, scale=scale,
    )  # fmt: skip
    length = length + accept_count

    position = length[:, None] + tree_depth(ancestors)  # [B, T]
    held = held_positions(settings, length)
    key_position = torch.cat([held, position], 1)  # [B, C + T]
    attended = attended_rows(settings, length, folded(settings, length)[:, None], held)
    visible = torch.cat([attended[:, None].expand(-1, nodes, -1), ancestors], 2)
    near = is_local(settings, position[:, :, None], key_position[:, None, :])

    def by_group(x: Tensor) -> Tensor:  # [B, H, T, X] -> [B, Hkv, H / Hkv * T, X]
        return x.reshape(batch, shared, heads // shared * nodes, x.shape[-1])

    def by_head(x: Tensor) -> Tensor:
        return x.reshape(batch, heads, nodes, x.shape[-1])

    def per_head(x: Tensor) -> Tensor:  # [H] -> [H, 1, 1]
        return x.to(compute)[:, None, None]

    zero = torch.zeros((), dtype=compute, device=query.device)
    keys = torch.cat([window_key, key], 2).to(compute)
    values = torch.cat([window_value, value], 2).to(compute)
    queries = query.to(compute)
    near_weights, far, remote, total, filters = zero, zero, zero, zero, zero
    if settings.has_state:
        phi = feature_maps.get(settings.feature_map).apply
        query_features = by_group(phi(queries, query_map.to(compute), scale))
        far = by_head(query_features @ phi(keys, key_map.to(compute), scale).transpose(2, 3))
        far = torch.where((visible & ~near)[:, None], far, zero)
        remote = by_head(query_features @ state)
        if settings.has_norm:
            total = by_head(query_features @ norm.unsqueeze(-1))
    if settings.local != "none":
        mask = (visible & near)[:, None]
        if settings.local_norm:
            queries, keys, scale = unit(queries, settings.eps), unit(keys, settings.eps), 1.0
        scores = by_head(by_group(queries) @ keys.transpose(2, 3)) * scale
        near_weights = torch.where(mask, LOCAL_KERNELS.named(settings.local).weigh(scores, mask), zero)
    if settings.conv_taps:
        filters = _filters(settings, position, key_position, ancestors, conv.to(compute))
    output = blend(
        near_weights, far, remote, total,
        local_scale=per_head(local_scale) if settings.local != "none" else zero,
        alpha=per_head(alpha) if settings.has_state else zero,
        filters=filters, attend=lambda weights: by_head(by_group(weights) @ values), settings=settings,
    )  # fmt: skip
    return output.to(query.dtype), state, norm, window_key, window_value, key


def _filters(
    settings: AttentionSettings, position: Tensor, key_position: Tensor, ancestors: Tensor, conv: Tensor
) -> Tensor:
    """Convolution weight of every (node, row) pair, ``[B, H, T, C + T]``: the tap of their path distance."""
    nodes, taps, rows = position.shape[1], conv.shape[1], settings.window_rows
    lag = position[:, :, None] - key_position[:, None, :]
    held = key_position[:, :rows] >= 0
    if settings.sinks:
        held = held & (torch.arange(rows, device=position.device) < settings.ring_rows)
    on_path = torch.cat([held[:, None].expand(-1, nodes, -1), ancestors], 2)
    lag = torch.where(on_path, lag, taps).clamp(max=taps)  # lag `taps` weighs nothing
    table = torch.cat([conv.t(), torch.zeros_like(conv[:, :1]).t()])
    return torch.nn.functional.embedding(lag, table).permute(0, 3, 1, 2)
