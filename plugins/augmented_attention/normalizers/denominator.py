"""Divide by the sum of the weights, as softmax does; a row without weights stays zero."""

from lineahead.plugins.augmented_attention.normalizers.base import NORMALIZERS, Normalizer

denominator = NORMALIZERS.register(
    Normalizer(name="denominator", of="weights", factor=lambda total, eps: (total + eps).reciprocal())
)
