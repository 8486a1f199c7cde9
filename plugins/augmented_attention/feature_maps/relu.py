"""phi(x) = relu(x): EfficientViT's linear attention (Cai et al., 2022, arXiv:2205.14756).

All features of a query or a key can be zero. Then every weight is zero and so is the output: the denominator
is the sum of the weights plus eps.
"""

from lineahead.plugins.augmented_attention.feature_maps.base import FEATURE_MAPS, FeatureMap

relu = FEATURE_MAPS.register(
    FeatureMap(name="relu", apply=lambda x, weight, scale: x.relu(), width=lambda dim, columns: dim)
)
