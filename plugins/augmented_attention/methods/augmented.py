"""The paper's own form."""

from lineahead.plugins.augmented_attention.methods.base import METHODS, Method
from lineahead.plugins.augmented_attention.schema import AttentionSettings

METHODS.register(
    Method(
        name="augmented",
        summary="FLASH's local and global attention and a masked convolution: the paper's own form",
        source="You et al., 2024, arXiv:2406.07368",
        settings=AttentionSettings(),
        augments=False,
    )
)
