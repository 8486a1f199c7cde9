"""Projections that are drawn once and never trained."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def orthogonal_gaussians(heads: int, dim: int, columns: int) -> "Tensor":
    """``[heads, dim, columns]``: every column a standard normal vector, orthogonal to its block's others.

    A block has as many columns as there are dimensions. Directions come from QR decompositions of Gaussian
    matrices, lengths are drawn apart; the features stay unbiased and their variance shrinks.

    Source: Choromanski et al., 2020, arXiv:2009.14794, section 2.4; Yu et al., 2016, arXiv:1610.09072.
    """
    import torch

    blocks = [
        torch.linalg.qr(torch.randn(heads, dim, dim, dtype=torch.float64))[0]
        for _ in range(-(-columns // dim))
    ]
    lengths = torch.randn(heads, dim, columns, dtype=torch.float64).norm(dim=1, keepdim=True)
    matrix: Tensor = torch.cat(blocks, -1)[..., :columns] * lengths
    return matrix.float()
