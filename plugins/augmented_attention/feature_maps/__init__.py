"""Feature maps phi of the global term, by name. A new map is one file and one import here."""

from lineahead.errors import SettingsError
from lineahead.plugins.augmented_attention.feature_maps.base import FEATURE_MAPS, FeatureMap
from lineahead.plugins.augmented_attention.feature_maps.hedgehog import hedgehog
from lineahead.plugins.augmented_attention.feature_maps.identity import identity

__all__ = ["FEATURE_MAPS", "FeatureMap", "get", "hedgehog", "identity"]


def get(name: str) -> FeatureMap:
    """The map called `name`.

    Raises:
        SettingsError: when there is none.
    """
    if name not in FEATURE_MAPS:
        raise SettingsError(
            f"unknown feature map {name!r}", hint=f"Choose one of: {', '.join(FEATURE_MAPS)}."
        )
    return FEATURE_MAPS[name]
