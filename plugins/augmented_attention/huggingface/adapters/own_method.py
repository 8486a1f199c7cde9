"""Attention classes with a method `_attn` of queries, keys, values and an additive mask."""

from typing import Any, cast

from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

Weighed = tuple[Tensor, Tensor | None]


class OwnMethodRouting:
    """Mixed in before such a class: `_attn` asks the attention table, unless it names the own form."""

    config: Any

    def _attn(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None
    ) -> Weighed:
        name = self.config._attn_implementation
        if name == "eager":
            return self._own(query, key, value, attention_mask)
        attend = ALL_ATTENTION_FUNCTIONS[name]
        output, weights = attend(self, query, key, value, attention_mask, **self._arguments())
        return output.transpose(1, 2), weights

    def eager_attention(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None
    ) -> Weighed:
        """The class's own softmax attention: ``[B, T, H, D]`` and its weights."""
        output, weights = self._own(query, key, value, attention_mask)
        return output.transpose(1, 2), weights

    def _own(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None) -> Weighed:
        return cast(Weighed, super()._attn(query, key, value, attention_mask))  # type: ignore[misc]

    def _arguments(self) -> dict[str, Any]:
        """Scaling and what else the table's functions take."""
        raise NotImplementedError
