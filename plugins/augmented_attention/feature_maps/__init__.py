"""Feature maps phi of the global term, by name. A new map is one file and one import here."""

from lineahead.plugins.augmented_attention.feature_maps.base import FEATURE_MAPS, FeatureMap
from lineahead.plugins.augmented_attention.feature_maps.elu1 import elu1
from lineahead.plugins.augmented_attention.feature_maps.hedgehog import hedgehog
from lineahead.plugins.augmented_attention.feature_maps.identity import identity
from lineahead.plugins.augmented_attention.feature_maps.linformer import linformer
from lineahead.plugins.augmented_attention.feature_maps.performer import performer
from lineahead.plugins.augmented_attention.feature_maps.relu import relu
from lineahead.plugins.augmented_attention.feature_maps.rfa import rfa

__all__ = [
    "FEATURE_MAPS",
    "FeatureMap",
    "elu1",
    "get",
    "hedgehog",
    "identity",
    "linformer",
    "performer",
    "relu",
    "rfa",
]

get = FEATURE_MAPS.named
