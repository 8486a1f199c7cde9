"""Integer bookkeeping of the step form: which position each row holds, what is local, what folds into S."""

import torch
from torch import Tensor

from lineahead.plugins.augmented_attention.schema import AttentionSettings


def ring_positions(length: Tensor, rows: int) -> Tensor:
    """Position held by each ring row after `length` ``[B]`` tokens; negative where the row is empty: ``[B, rows]``."""
    last = length[:, None] - 1
    behind = last - torch.arange(rows, device=length.device)
    return last - torch.remainder(behind, rows)


def is_local(settings: AttentionSettings, query_position: Tensor, key_position: Tensor) -> Tensor:
    """Whether key position is in the group or window of query position; the arguments broadcast."""
    if settings.pattern == "grouped":
        return (query_position // settings.window) == (key_position.clamp(min=0) // settings.window)
    if settings.pattern == "sliding":
        return query_position - key_position < settings.window
    return torch.zeros_like(query_position - key_position, dtype=torch.bool)


def tree_depth(ancestors: Tensor) -> Tensor:
    """Depth of each node under its root, ``[B, T]``, from ``ancestors [B, T, T]`` (row i marks i and its ancestors)."""
    return ancestors.sum(-1) - 1
