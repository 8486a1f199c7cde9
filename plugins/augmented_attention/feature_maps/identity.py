"""phi(x) = x: the global term of FLASH (Hua et al., 2022, arXiv:2202.10447) and of the augmented form."""

from lineahead.plugins.augmented_attention.feature_maps.base import FEATURE_MAPS, FeatureMap

identity = FEATURE_MAPS.register(
    FeatureMap(name="identity", apply=lambda x, weight, scale: x, width=lambda dim, columns: dim)
)
