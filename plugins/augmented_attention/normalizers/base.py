"""What a normalizer is, and the table of all of them. No torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lineahead.plugins.augmented_attention.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Normalizer:
    """What an attention row is multiplied by.

    Attributes:
        name: what settings and files call it.
        of: ``weights``: the factor follows from the sum of the row's weights, and the state has a second part
            z; ``output``: from the row itself.
        factor: takes the sum ``[..., 1]`` or the row ``[..., Dv]``, and eps; returns ``[..., 1]``. It is
            finite, with a finite gradient, for a row of zeros.
    """

    name: str
    of: Literal["weights", "output"]
    factor: "Callable[[Tensor, float], Tensor]"


NORMALIZERS: Registry[Normalizer] = Registry("normalizer")
