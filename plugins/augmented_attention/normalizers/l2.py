"""Divide by the row's length: YOSO's output normalisation (Zeng et al., 2021, arXiv:2111.09714)."""

from lineahead.plugins.augmented_attention.normalizers.base import NORMALIZERS, Normalizer

l2 = NORMALIZERS.register(
    Normalizer(
        name="l2", of="output", factor=lambda row, eps: (row.square().sum(-1, keepdim=True) + eps).rsqrt()
    )
)
