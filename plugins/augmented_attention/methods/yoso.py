"""YOSO in expectation; the causal form works inside groups."""

from lineahead.plugins.augmented_attention.methods.base import METHODS, Method
from lineahead.plugins.augmented_attention.schema import AttentionSettings

METHODS.register(
    Method(
        name="yoso",
        summary="collision probabilities of random hyperplanes inside groups, outputs of length 1",
        source="Zeng et al., 2021, arXiv:2111.09714",
        settings=AttentionSettings(local="yoso", feature_map="none", normalizer="l2", conv_taps=0),
    )
)
