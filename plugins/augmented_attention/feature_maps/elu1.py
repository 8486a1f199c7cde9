"""phi(x) = 1 + elu(x): TransNormer's map (Qin et al., 2022, arXiv:2210.10340)."""

from typing import TYPE_CHECKING

from lineahead.plugins.augmented_attention.feature_maps.base import FEATURE_MAPS, FeatureMap

if TYPE_CHECKING:
    from torch import Tensor


def _elu1(x: "Tensor", weight: "Tensor | None", scale: float) -> "Tensor":
    return (x + 1).where(x > 0, x.clamp(max=0).exp())  # never exp of a large x: inf * 0 in its gradient


elu1 = FEATURE_MAPS.register(FeatureMap(name="elu1", apply=_elu1, width=lambda dim, columns: dim))
