"""A transformers cache layer that holds one gated attention unit's state."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from lineahead.errors import InputError
from lineahead.plugins.augmented_attention.huggingface.fixed_layer import FixedSizeLayer
from lineahead.plugins.gated_attention_unit.attention import GroupState


class UnitLayer(FixedSizeLayer):
    """State of one unit: its groups, and the last row that the token shift looks back at.

    Attributes:
        groups: None before the first token.
        shifted: ``[B, 1, D / 2]``, or None.
        tokens: how many it has seen.
    """

    is_croppable = False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reset()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Nothing grows: the rows as they came."""
        return key_states, value_states

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do."""

    def reset(self) -> None:
        """Forget everything."""
        self.groups: GroupState | None = None
        self.shifted: Tensor | None = None
        self.tokens = 0

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse: sums cannot be taken apart.

        Raises:
            InputError: always, but for 0.
        """
        if tokens_to_remove:
            raise InputError(
                "the state of a gated attention unit cannot be rolled back",
                hint="Generate without an assistant or prompt lookup.",
            )

    def get_seq_length(self) -> int:
        """Tokens seen."""
        return self.tokens

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Width and offset of an attention mask."""
        return self.tokens + query_length, 0

    def _rows(self, pick: Callable[[Tensor], Tensor]) -> None:
        if self.groups is None or self.shifted is None:
            return
        kept = {name: None if x is None else pick(x) for name, x in vars(self.groups).items()}
        self.groups = GroupState(**kept)  # type: ignore[arg-type]
        self.shifted = pick(self.shifted)


def unit_layers(cache: Cache, count: int) -> list[UnitLayer]:
    """The layers of a cache, made anew where it is still empty.

    Raises:
        InputError: when it holds another kind of state.
    """
    layers: list[Any] = list(cache.layers[:count]) + [
        DynamicLayer() for _ in range(count - len(cache.layers))
    ]
    for index, layer in enumerate(layers):
        if isinstance(layer, UnitLayer):
            continue
        if not isinstance(layer, DynamicLayer) or layer.is_initialized:
            raise InputError(
                f"layer {index}: the cache holds a {type(layer).__name__}",
                hint="Drop cache_implementation and past_key_values: the state already has a constant size.",
            )
        layers[index] = UnitLayer()
    cache.layers = layers
    return layers
