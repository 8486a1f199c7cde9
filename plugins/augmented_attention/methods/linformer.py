"""Linformer: keys and values mixed over positions, so for encoders only."""

from lineahead.plugins.augmented_attention.methods.base import METHODS, Method
from lineahead.plugins.augmented_attention.schema import AttentionSettings

METHODS.register(
    Method(
        name="linformer",
        summary="softmax over learned mixtures of keys: encoders only",
        source="Wang et al., 2020, arXiv:2006.04768",
        settings=AttentionSettings(
            local="none",
            pattern="none",
            feature_map="linformer",
            feature_dim=64,
            normalizer="denominator",
            qk_norm=False,
            conv_taps=0,
            causal=False,
        ),
    )
)
