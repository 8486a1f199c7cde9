"""What cache layers of constant size have in common for transformers: moving rows about, and no maximum."""

from collections.abc import Callable
from dataclasses import fields

from torch import Tensor
from transformers.cache_utils import CacheLayerMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

# The argument and the output that hold the cache; transformers renamed them in 5.24.
CACHE = next(
    name
    for name in ("cache", "past_key_values")
    if name in {one.name for one in fields(CausalLMOutputWithPast)}
)


class FixedSizeLayer(CacheLayerMixin):
    """Base of the cache layers whose size does not depend on the text's length."""

    is_compileable = False
    is_sliding = False
    supports_early_init = False

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    def get_max_cache_shape(self) -> int:
        """The same, as transformers before 5.17 asks."""
        return -1

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Pick rows for beam search: ``beam_idx [B']``."""
        self._rows(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row `repeats` times."""
        self._rows(lambda x: x.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`."""
        self._rows(lambda x: x[indices.to(x.device)])

    def _rows(self, pick: Callable[[Tensor], Tensor]) -> None:
        """Apply `pick` to everything that has a row per sequence."""
        raise NotImplementedError
