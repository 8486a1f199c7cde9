"""Random Fourier features of the Gaussian kernel (Peng et al., 2021, arXiv:2103.02143).

With ``x' = sqrt(scale) x`` and W of Gaussian columns,

    phi(x) = [sin(x' W), cos(x' W)] / sqrt(M),        E[phi(q) . phi(k)] = exp(-|q' - k'|^2 / 2),

which for the paper's normalised queries and keys is proportional to ``exp(scale q . k)``. The features are
signed, so a sum of them can come out below what the kernel allows. For unit vectors at scale 1 the kernel is
at least ``exp(-2)``, and denominators are held above that. The paper's gate, a decay of S learned per token,
is left out: S would no longer be a sum, and every form here, the commit of accepted rows first, rests on
that; the study's table 16 has the form without it.
"""

import math
from typing import TYPE_CHECKING

from lineahead.plugins.augmented_attention.feature_maps.base import FEATURE_MAPS, FeatureMap
from lineahead.plugins.augmented_attention.feature_maps.random import orthogonal_gaussians

if TYPE_CHECKING:
    from torch import Tensor


def _rfa(x: "Tensor", weight: "Tensor | None", scale: float) -> "Tensor":
    import torch

    assert weight is not None
    angle = x @ weight * math.sqrt(scale)
    return torch.cat([angle.sin(), angle.cos()], -1) / math.sqrt(weight.shape[-1])


rfa = FEATURE_MAPS.register(
    FeatureMap(
        name="rfa",
        apply=_rfa,
        width=lambda dim, columns: 2 * columns,
        initial=orthogonal_gaussians,
        learned=False,
        floor=math.exp(-2.0),
    )
)
