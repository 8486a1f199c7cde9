"""What a feature map is, and the table of all of them."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class FeatureMap:
    """phi: ``[..., N, D] -> [..., N, F]``.

    Attributes:
        name: what settings and files call it.
        apply: the map; takes ``x [B, H, N, D]`` and the projection ``[H, D, M]`` or None, returns ``[B, H,
            N, F]``.
        width: F for a head dimension D and a projection width M.
        initial: projection ``[heads, D, M]`` before training, or None when the map has no weights.
    """

    name: str
    apply: Callable[[Tensor, Tensor | None], Tensor]
    width: Callable[[int, int], int]
    initial: Callable[[int, int, int], Tensor] | None = None


FEATURE_MAPS: dict[str, FeatureMap] = {}


def register(feature_map: FeatureMap) -> FeatureMap:
    """Enter `feature_map` in the table."""
    FEATURE_MAPS[feature_map.name] = feature_map
    return feature_map
