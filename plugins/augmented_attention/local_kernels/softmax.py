"""f(x) = exp(x - max): with a denominator, softmax attention of the window (arXiv:2410.10254, eq. 6)."""

from typing import TYPE_CHECKING

from lineahead.plugins.augmented_attention.local_kernels.base import LOCAL_KERNELS, LocalKernel

if TYPE_CHECKING:
    from torch import Tensor


def _shifted_exponential(scores: "Tensor", mask: "Tensor") -> "Tensor":
    import torch

    lowest = torch.finfo(scores.dtype).min
    peak = torch.where(mask, scores, lowest).amax(-1, keepdim=True)
    return torch.where(mask, scores - peak, lowest).exp()


softmax = LOCAL_KERNELS.register(LocalKernel(name="softmax", weigh=_shifted_exponential, relative=True))
