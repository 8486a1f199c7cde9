"""Linear attention with ReLU features."""

from lineahead.plugins.augmented_attention.methods.base import METHODS, Method
from lineahead.plugins.augmented_attention.schema import AttentionSettings

METHODS.register(
    Method(
        name="relu",
        summary="ReLU features under a denominator, as EfficientViT attends",
        source="Cai et al., 2022, arXiv:2205.14756",
        settings=AttentionSettings(
            local="none",
            pattern="none",
            feature_map="relu",
            normalizer="denominator",
            qk_norm=False,
            conv_taps=0,
        ),
    )
)
