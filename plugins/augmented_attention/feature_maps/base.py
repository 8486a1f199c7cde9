"""What a feature map is, and the table of all of them. No torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lineahead.plugins.augmented_attention.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class FeatureMap:
    """phi: ``[..., N, D] -> [..., N, F]``.

    Attributes:
        name: what settings and files call it.
        apply: the map; takes ``x [B, H, N, D]``, the projection ``[H, D, M]`` or None, and the attention's
            scale (maps that approximate ``exp(scale q . k)`` use it); returns ``[B, H, N, F]``.
        width: F for a head dimension D and a projection width M.
        initial: projection ``[heads, D, M]`` before training, or None when the map has no weights.
        learned: whether the projection is trained, queries and keys each their own; False: drawn once, the
            same for both, kept in the checkpoint and never trained.
        floor: the least that ``phi(q) . phi(k)`` of a single key approximates; denominators of features alone
            are held above it. 0 for maps without negative features.
        acausal: why the map has no causal form; empty when it has one.
    """

    name: str
    apply: "Callable[[Tensor, Tensor | None, float], Tensor]"
    width: Callable[[int, int], int]
    initial: "Callable[[int, int, int], Tensor] | None" = None
    learned: bool = True
    floor: float = 0.0
    acausal: str = ""


FEATURE_MAPS: Registry[FeatureMap] = Registry("feature map")
