"""FLASH's local attention alone."""

from lineahead.plugins.augmented_attention.methods.base import METHODS, Method
from lineahead.plugins.augmented_attention.schema import AttentionSettings

METHODS.register(
    Method(
        name="flash-local",
        summary="squared ReLU of cosines inside groups",
        source="Hua et al., 2022, arXiv:2202.10447",
        settings=AttentionSettings(feature_map="none", conv_taps=0),
    )
)
