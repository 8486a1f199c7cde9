"""f(x) = (1 - acos(x) / pi)^8: the expectation of YOSO's sampling (Zeng et al., 2021, arXiv:2111.09714).

A random hyperplane leaves two unit vectors on one side with probability ``1 - angle / pi``; YOSO takes
tau = 8 hyperplanes. The slope of acos is infinite at +-1, so cosines are held within 1 - 1e-6 of zero: the
weight of equal vectors is 0.9964 instead of 1, no slope is above 1,801, and an error of 1e-7 in a float32
cosine stays below 2e-4 in the weight.
"""

import math
from typing import TYPE_CHECKING

from lineahead.plugins.augmented_attention.local_kernels.base import LOCAL_KERNELS, LocalKernel

if TYPE_CHECKING:
    from torch import Tensor

HYPERPLANES = 8
LARGEST_COSINE = 1 - 1e-6


def _collision(scores: "Tensor", mask: "Tensor") -> "Tensor":
    angle = scores.clamp(-LARGEST_COSINE, LARGEST_COSINE).acos()
    return (1 - angle / math.pi) ** HYPERPLANES


yoso = LOCAL_KERNELS.register(LocalKernel(name="yoso", weigh=_collision, cosine=True))
