"""The step form of softmax attention: commit accepted rows to the cache, attend from every node of a tree."""

import torch
from torch import Tensor

from lineahead.plugins.augmented_attention.masks import tree_depth
from lineahead.plugins.augmented_attention.step import pick
from lineahead.plugins.softmax_attention.schema import CacheSettings


def cache_step(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ancestors: Tensor,
    length: Tensor,
    accept_index: Tensor,
    accept_count: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    pending_key: Tensor,
    pending_value: Tensor,
    *,
    settings: CacheSettings,
    scale: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Commit, then attend: ``softmax_j(cap(scale q_i . k_j)) v_j`` over the visible keys j.

    ``cap(x) = softcap tanh(x / softcap)`` where there is a cap. The cache is read after the commit only, so
    `past` and `present` may share memory.

    Args:
        query: ``[B, H, T, D]``, after RoPE at position ``length + accept_count + depth``.
        key: ``[B, Hkv, T, D]``.
        value: ``[B, Hkv, T, Dv]``.
        ancestors: ``[B, T, T]`` bool; row i marks node i and its ancestors.
        length: ``[B]`` int64, tokens committed before this call.
        accept_index: ``[B, A]`` int64, rows of the pending tensors in path order; padding is any valid row.
        accept_count: ``[B]`` int64, how many of them count.
        past_key: ``[B, Hkv, N, D]`` with ``N >= max(length) + A``; position p is in row p.
        past_value: ``[B, Hkv, N, Dv]``.
        pending_key: ``[B, Hkv, P, D]``, the previous call's keys.
        pending_value: ``[B, Hkv, P, Dv]``, the previous call's values.
        settings: which keys a query sees.
        scale: multiplier of ``q . k``.
        softcap: bound of the scores; None for none.
        sinks: ``[H]``, logits of one more entry per head that has no value; None for none.

    Returns:
        output ``[B, H, T, Dv]`` in query's dtype, and the cache's keys and values after the commit.
    """
    batch, heads, nodes, _ = query.shape
    shared, rows = key.shape[1], past_key.shape[2]
    target = length[:, None] + torch.arange(accept_index.shape[1], device=length.device)
    past_key = _write(past_key, target, pick(pending_key, accept_index))
    past_value = _write(past_value, target, pick(pending_value, accept_index))

    length = length + accept_count
    position = length[:, None] + tree_depth(ancestors)  # [B, T]
    held = torch.arange(rows, device=length.device).expand(batch, -1)
    stored = (held < length[:, None])[:, None].expand(-1, nodes, -1)
    visible = torch.cat([stored, ancestors], 2)
    if settings.pattern != "whole":
        visible = visible & _near(settings, position[:, :, None], torch.cat([held, position], 1)[:, None])

    grouped = query.reshape(batch, shared, heads // shared * nodes, query.shape[-1])
    parts = [
        grouped @ keys.transpose(2, 3) for keys in (past_key, key)
    ]  # apart: joining would copy the cache
    scores = torch.cat(parts, 3).reshape(batch, heads, nodes, rows + nodes)
    scores = scores.to(torch.promote_types(query.dtype, torch.float32)) * scale
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    scores = scores.masked_fill(~visible[:, None], torch.finfo(scores.dtype).min)
    if sinks is not None:
        extra = sinks.to(scores.dtype)[None, :, None, None].expand(batch, -1, nodes, -1)
        scores = torch.cat([scores, extra], 3)
    weights = scores.softmax(-1)[..., : rows + nodes].to(value.dtype)
    weights = weights.reshape(batch, shared, heads // shared * nodes, rows + nodes)
    output = weights[..., :rows] @ past_value + weights[..., rows:] @ value
    return output.reshape(batch, heads, nodes, value.shape[-1]).to(query.dtype), past_key, past_value


def _write(cache: Tensor, row: Tensor, x: Tensor) -> Tensor:
    """``cache [B, H, N, D]`` with rows ``row [B, A]`` replaced by ``x [B, H, A, D]``."""
    return cache.scatter(2, row[:, None, :, None].expand_as(x), x)


def _near(settings: CacheSettings, query: Tensor, key: Tensor) -> Tensor:
    """Whether key position is in the group or window of query position; the arguments broadcast."""
    if settings.pattern == "grouped":
        return query // settings.window == key // settings.window
    return query - key < settings.window
