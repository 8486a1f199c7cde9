"""phi(x) = [softmax(xW), softmax(-xW)], W learned per head (Zhang et al., 2024, arXiv:2402.04347)."""

from typing import TYPE_CHECKING

from lineahead.plugins.augmented_attention.feature_maps.base import FEATURE_MAPS, FeatureMap

if TYPE_CHECKING:
    from torch import Tensor


def _hedgehog(x: "Tensor", weight: "Tensor | None", scale: float) -> "Tensor":
    import torch

    assert weight is not None
    logits = x @ weight
    return torch.cat([logits.softmax(-1), (-logits).softmax(-1)], -1)


def _identity_matrices(heads: int, dim: int, columns: int) -> "Tensor":
    import torch

    square = torch.eye(dim)
    blocks = [square]
    generator = torch.Generator().manual_seed(columns)
    for _ in range(-(-columns // dim) - 1):  # further columns are rotations: copies would get equal gradients
        blocks.append(torch.linalg.qr(torch.randn(dim, dim, generator=generator)).Q)
    return torch.cat(blocks, 1)[:, :columns].repeat(heads, 1, 1)


hedgehog = FEATURE_MAPS.register(
    FeatureMap(
        name="hedgehog",
        apply=_hedgehog,
        width=lambda dim, columns: 2 * columns,
        initial=_identity_matrices,
    )
)
