"""What a method of the study is: named settings, and the same with the paper's augmentation. No torch."""

from dataclasses import dataclass, replace

from lineahead.plugins.augmented_attention.registry import Registry
from lineahead.plugins.augmented_attention.schema import AttentionSettings

PREFIX = "augmented-"


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to attend in linear time, as settings of the one operator.

    Attributes:
        name: of the preset; its augmented form is ``augmented-NAME``.
        summary: one line.
        source: the paper.
        settings: the method as published, nothing added.
        augments: whether the augmented form exists; False for what is augmented already.
    """

    name: str
    summary: str
    source: str
    settings: AttentionSettings
    augments: bool = True

    def presets(self) -> dict[str, AttentionSettings]:
        """The method's presets by name: plain, then augmented."""
        plain = {self.name: self.settings}
        return plain | {PREFIX + self.name: augmented(self.settings)} if self.augments else plain


def augmented(settings: AttentionSettings) -> AttentionSettings:
    """What a method lacks of: local attention in groups of 64, a global term, a convolution of 32 taps.

    A method with a global term keeps it as it is, normalizer included, and gets FLASH's local kernel on
    normalised queries and keys beside it. A method that is local itself (FLASH local, YOSO) keeps its kernel
    and gets FLASH's global term, which is how the paper's tables 14 and 15 augment FLASH local. So the
    augmented forms of FLASH local and FLASH global are one, the preset ``augmented``.

    Source: You et al., 2024, arXiv:2406.07368, section 4 and table 16.
    """
    scope = "all" if settings.normalizer == "none" else "global" if settings.has_state else "local"
    if not settings.has_state:
        return replace(settings, feature_map="identity", conv_taps=32, normalizes=scope)
    return replace(
        settings,
        local="relu2",
        pattern="grouped",
        window=64,
        local_norm=not settings.qk_norm,
        conv_taps=32,
        normalizes=scope,
    )


METHODS: Registry[Method] = Registry("method")
