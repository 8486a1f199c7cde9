"""What a local kernel is, and the table of all of them. No torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lineahead.plugins.augmented_attention.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LocalKernel:
    """f: scores of local keys to their weights.

    Attributes:
        name: what settings and files call it.
        weigh: takes scores ``[..., N, M]`` and a mask that broadcasts to them; returns weights, meaningful
            under the mask only. A row's result may depend on the scores under its mask and no others.
        relative: the weights of a row are known up to a common factor, so that a denominator must divide
            them.
        cosine: scores must be cosines: queries and keys are to be L2-normalised.
    """

    name: str
    weigh: "Callable[[Tensor, Tensor], Tensor]"
    relative: bool = False
    cosine: bool = False


LOCAL_KERNELS: Registry[LocalKernel] = Registry("local kernel")
