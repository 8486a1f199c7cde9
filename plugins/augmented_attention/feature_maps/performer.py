"""FAVOR+: positive random features of ``exp(scale q . k)`` (Choromanski et al., 2020, arXiv:2009.14794).

With ``x' = sqrt(scale) x`` (``D**-0.25 x`` at the usual scale) and W of orthogonal Gaussian columns,

    phi(x) = exp(x' W - |x'|^2 / 2) / sqrt(M),        E[phi(q) . phi(k)] = exp(scale q . k).

Overflow: the exponent of a column w of W is ``x' . w - |x'|^2 / 2 <= |w|^2 / 2``, with equality at
``x' = w``. Columns have the length of a standard normal vector in D dimensions, ``|w|^2`` about D: a key that
points along a column can reach ``exp(D / 2)``, which passes float32 at D = 178. Both ends are therefore
bounded at ``exp(+-30)``: above, a million summed keys against a query stay under 1e33; below, features stay
positive, so that a denominator is never zero. Typical exponents are ``-|x'|^2 / 2 +- |x'|``, far from the
bounds unless heads are much longer than ``D**0.75``.
"""

import math
from typing import TYPE_CHECKING

from lineahead.plugins.augmented_attention.feature_maps.base import FEATURE_MAPS, FeatureMap
from lineahead.plugins.augmented_attention.feature_maps.random import orthogonal_gaussians

if TYPE_CHECKING:
    from torch import Tensor

EXPONENT_BOUND = 30.0


def _performer(x: "Tensor", weight: "Tensor | None", scale: float) -> "Tensor":
    assert weight is not None
    scaled = x * math.sqrt(scale)
    exponent = scaled @ weight - scaled.square().sum(-1, keepdim=True) / 2
    return exponent.clamp(-EXPONENT_BOUND, EXPONENT_BOUND).exp() / math.sqrt(weight.shape[-1])


performer = FEATURE_MAPS.register(
    FeatureMap(
        name="performer",
        apply=_performer,
        width=lambda dim, columns: columns,
        initial=orthogonal_gaussians,
        learned=False,
    )
)
