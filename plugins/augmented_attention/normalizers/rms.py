"""Divide by the row's root mean square: RMSNorm without weight (Qin et al., 2022, arXiv:2210.10340)."""

from lineahead.plugins.augmented_attention.normalizers.base import NORMALIZERS, Normalizer

rms = NORMALIZERS.register(
    Normalizer(
        name="rms", of="output", factor=lambda row, eps: (row.square().mean(-1, keepdim=True) + eps).rsqrt()
    )
)
