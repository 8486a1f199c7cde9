"""Performer: softmax attention by random features."""

from lineahead.plugins.augmented_attention.methods.base import METHODS, Method
from lineahead.plugins.augmented_attention.schema import AttentionSettings

METHODS.register(
    Method(
        name="performer",
        summary="positive orthogonal random features of softmax (FAVOR+)",
        source="Choromanski et al., 2020, arXiv:2009.14794",
        settings=AttentionSettings(
            local="none",
            pattern="none",
            feature_map="performer",
            normalizer="denominator",
            qk_norm=False,
            conv_taps=0,
            eps=1e-7,  # features of long keys are tiny, and so is their sum
        ),
    )
)
