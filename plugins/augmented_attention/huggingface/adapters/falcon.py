"""Falcon with rotary positions: one fused projection, attention inside `forward`."""

from typing import Any, cast

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lineahead.errors import ArchitectureError

OWN = ("eager", "sdpa", "flash_attention_2")


class FalconRouting:
    """Mixed into ``FalconAttention``: `forward` asks the attention table, unless it names an own form."""

    config: Any
    layer_idx: int
    num_heads: int
    head_dim: int
    num_kv_heads: int
    new_decoder_architecture: bool

    @property
    def num_key_value_groups(self) -> int:
        """Query heads for each key head."""
        return self.num_heads // self.num_kv_heads

    def forward(
        self,
        hidden_states: Tensor,
        alibi: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None = None,
        layer_past: Any = None,
        use_cache: bool = False,
        output_attentions: bool = False,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As the base class, whose arguments these are.

        Raises:
            ArchitectureError: for a model with ALiBi.
        """
        name = self.config._attn_implementation
        if name in OWN:
            return cast(
                tuple[Tensor, Tensor | None],
                super().forward(  # type: ignore[misc]
                    hidden_states,
                    alibi,
                    attention_mask,
                    position_ids=position_ids,
                    layer_past=layer_past,
                    use_cache=use_cache,
                    output_attentions=output_attentions,
                    position_embeddings=position_embeddings,
                    **kwargs,
                ),
            )
        if alibi is not None or position_embeddings is None:
            raise ArchitectureError(
                "Falcon with ALiBi: its weights decay with distance, which the operator's state cannot do",
                hint="Choose a model with rotary positions: Falcon without ALiBi.",
            )
        query, key, value = self._heads(hidden_states)
        cos, sin = (one.unsqueeze(1) for one in position_embeddings)
        query, key = (x * cos + _half_turned(x) * sin for x in (query, key))
        if layer_past is not None:
            key, value = layer_past.update(key, value, self.layer_idx)
        scaling = self.head_dim**-0.5
        attend = ALL_ATTENTION_FUNCTIONS[name]
        output, weights = attend(self, query, key, value, attention_mask, scaling=scaling)
        return self.dense(output.flatten(2)), weights  # type: ignore[attr-defined]

    def eager_attention(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Softmax attention: ``[B, T, H, D]``."""
        sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
        return cast(tuple[Tensor, Tensor | None], sdpa(self, query, key, value, attention_mask))

    def _heads(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``[B, heads, T, D]``; keys and values once per group of query heads."""
        fused = self.query_key_value(hidden_states)  # type: ignore[attr-defined]
        query, key, value = self._split_heads(fused)  # type: ignore[attr-defined]
        if self.new_decoder_architecture:  # has repeated them
            key, value = (x[:, :, :: self.num_key_value_groups] for x in (key, value))
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


def _half_turned(x: Tensor) -> Tensor:
    """The second half of the last axis, negated, before the first."""
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)
