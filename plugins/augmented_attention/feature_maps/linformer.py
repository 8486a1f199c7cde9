"""Linformer's global term, ``softmax(scale q (E K)^T) (F V)`` (Wang et al., 2020, arXiv:2006.04768).

E and F mix positions, so it is no map of single tokens and has no causal, recurrent form: the bidirectional
forms compute it themselves. `feature_dim` is the number of mixtures.
"""

from typing import TYPE_CHECKING

from lineahead.errors import SettingsError
from lineahead.plugins.augmented_attention.feature_maps.base import FEATURE_MAPS, FeatureMap

if TYPE_CHECKING:
    from torch import Tensor

_REASON = "it mixes keys and values over the whole text, later tokens included"


def _linformer(x: "Tensor", weight: "Tensor | None", scale: float) -> "Tensor":
    raise SettingsError(f"feature_map='linformer' maps no single token: {_REASON}", hint="Set causal: false.")


linformer = FEATURE_MAPS.register(
    FeatureMap(
        name="linformer", apply=_linformer, width=lambda dim, columns: columns, learned=False, acausal=_REASON
    )
)
