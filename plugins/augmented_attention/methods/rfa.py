"""Random feature attention."""

from lineahead.plugins.augmented_attention.methods.base import METHODS, Method
from lineahead.plugins.augmented_attention.schema import AttentionSettings

METHODS.register(
    Method(
        name="rfa",
        summary="random Fourier features of a Gaussian kernel of cosines, without the gate",
        source="Peng et al., 2021, arXiv:2103.02143",
        settings=AttentionSettings(
            local="none",
            pattern="none",
            feature_map="rfa",
            normalizer="denominator",
            conv_taps=0,
        ),
    )
)
