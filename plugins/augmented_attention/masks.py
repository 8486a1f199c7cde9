"""Integer bookkeeping of the step form: which position each row holds, what is local, what folds into S."""

import torch
from torch import Tensor

from lineahead.plugins.augmented_attention.schema import AttentionSettings


def ring_positions(length: Tensor, rows: int) -> Tensor:
    """Position held by each ring row after `length` ``[B]`` tokens, negative where empty: ``[B, rows]``."""
    last = length[:, None] - 1
    behind = last - torch.arange(rows, device=length.device)
    return last - torch.remainder(behind, rows)


def held_positions(settings: AttentionSettings, length: Tensor) -> Tensor:
    """Position held by each window row, ring then sinks, negative where empty: ``[B, window_rows]``."""
    ring = ring_positions(length, settings.ring_rows)
    if not settings.sinks:
        return ring
    sink = torch.arange(settings.sinks, device=length.device).expand(length.shape[0], -1)
    return torch.cat([ring, torch.where(sink < length[:, None], sink, -1)], 1)


def attended_rows(settings: AttentionSettings, length: Tensor, first: Tensor, held: Tensor) -> Tensor:
    """Window rows that attention reads, ``[B, window_rows]``: sinks, and other ring rows from `first` on."""
    if not settings.sinks:
        return held >= first
    in_ring = torch.arange(settings.window_rows, device=length.device) < settings.ring_rows
    return held >= torch.where(in_ring, first.clamp(min=settings.sinks), 0)


def is_local(settings: AttentionSettings, query_position: Tensor, key_position: Tensor) -> Tensor:
    """Whether key position is a sink or in the group or window of query position; the arguments broadcast."""
    if settings.pattern == "grouped":
        near = (query_position // settings.window) == (key_position.clamp(min=0) // settings.window)
    elif settings.pattern == "sliding":
        near = query_position - key_position < settings.window
    else:
        near = torch.zeros_like(query_position - key_position, dtype=torch.bool)
    return near | (key_position < settings.sinks) if settings.sinks else near


def tree_depth(ancestors: Tensor) -> Tensor:
    """Depth ``[B, T]`` of each node under its root, from ``ancestors [B, T, T]``."""
    return ancestors.sum(-1) - 1
