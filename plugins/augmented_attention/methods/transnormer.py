"""TransNormer's linear attention."""

from lineahead.plugins.augmented_attention.methods.base import METHODS, Method
from lineahead.plugins.augmented_attention.schema import AttentionSettings

METHODS.register(
    Method(
        name="transnormer",
        summary="1 + elu features, RMSNorm of the output instead of a denominator",
        source="Qin et al., 2022, arXiv:2210.10340",
        settings=AttentionSettings(
            local="none",
            pattern="none",
            feature_map="elu1",
            normalizer="rms",
            qk_norm=False,
            conv_taps=0,
        ),
    )
)
