"""FLASH's global attention alone: ``q_i S``, S the sum over earlier groups."""

from lineahead.plugins.augmented_attention.methods.base import METHODS, Method
from lineahead.plugins.augmented_attention.schema import AttentionSettings

METHODS.register(
    Method(
        name="flash-global",
        summary="unnormalised linear attention to the earlier groups, the own one left out",
        source="Hua et al., 2022, arXiv:2202.10447",
        settings=AttentionSettings(local="none", conv_taps=0),
    )
)
