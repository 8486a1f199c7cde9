"""phi(x) = [softmax(xW), softmax(-xW)], W learned per head (Zhang et al., 2024, arXiv:2402.04347)."""

import torch
from torch import Tensor

from lineahead.plugins.augmented_attention.feature_maps.base import FeatureMap, register


def _apply(x: Tensor, weight: Tensor | None) -> Tensor:
    assert weight is not None
    logits = x @ weight
    return torch.cat([logits.softmax(-1), (-logits).softmax(-1)], -1)


def _initial(heads: int, dim: int, columns: int) -> Tensor:
    return torch.eye(dim, columns).repeat(heads, 1, 1)


hedgehog = register(
    FeatureMap(name="hedgehog", apply=_apply, width=lambda dim, columns: 2 * columns, initial=_initial)
)
