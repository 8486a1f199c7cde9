"""A softmax window and a learned feature map."""

from lineahead.plugins.augmented_attention.methods.base import METHODS, Method
from lineahead.plugins.augmented_attention.schema import AttentionSettings

METHODS.register(
    Method(
        name="softmax-hedgehog",
        summary="a sliding softmax window and a learned feature map under one denominator",
        source="Zhang et al., 2024, arXiv:2410.10254, and 2402.04347",
        settings=AttentionSettings(
            local="softmax",
            pattern="sliding",
            feature_map="hedgehog",
            normalizer="denominator",
            qk_norm=False,
            sinks=4,
        ),
        augments=False,
    )
)
