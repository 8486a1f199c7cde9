"""Normalizers of attention rows, by name. A new normalizer is one file and one import here."""

from lineahead.plugins.augmented_attention.normalizers.base import NORMALIZERS, Normalizer
from lineahead.plugins.augmented_attention.normalizers.denominator import denominator
from lineahead.plugins.augmented_attention.normalizers.l2 import l2
from lineahead.plugins.augmented_attention.normalizers.rms import rms

__all__ = ["NORMALIZERS", "Normalizer", "denominator", "l2", "rms"]
