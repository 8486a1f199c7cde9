"""f(x) = exp(c(x) - max) with c(x) = 50 tanh(x / 50): the softmax attention of Gemma 2 inside a window.

Gemma 2 holds every attention score within +-50 (Gemma Team, 2024, arXiv:2408.00118, section 2). A cap is
part of the kernel, so another cap is another kernel.
"""

from typing import TYPE_CHECKING

from lineahead.errors import SettingsError
from lineahead.plugins.augmented_attention.local_kernels.base import LOCAL_KERNELS, LocalKernel
from lineahead.plugins.augmented_attention.local_kernels.softmax import softmax

if TYPE_CHECKING:
    from torch import Tensor

CAP = 50.0


def _capped(scores: "Tensor", mask: "Tensor") -> "Tensor":
    return softmax.weigh((scores / CAP).tanh() * CAP, mask)


capped_softmax = LOCAL_KERNELS.register(LocalKernel(name="softmax_cap50", weigh=_capped, relative=True))


def capped(local: str, cap: float | None) -> str:
    """The local kernel for a layer whose softmax scores have a cap.

    Only the softmax kernel repeats the layer's own scores; the others replace them, and the cap with them.

    Args:
        local: the method's kernel.
        cap: of the layer's scores; None without.

    Raises:
        SettingsError: for softmax under a cap that has no kernel.
    """
    if cap is None or local != softmax.name:
        return local
    if cap != CAP:
        raise SettingsError(
            f"scores are held within {cap:g}, and local={local!r} knows a cap of {CAP:g} only",
            hint="Choose a method whose local kernel is not softmax (augmented), or keep these layers.",
        )
    return capped_softmax.name
