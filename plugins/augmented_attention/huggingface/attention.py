"""The attention and mask functions that transformers calls, and the modes in which training runs them."""

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, DynamicLayer, EncoderDecoderCache
from transformers.masking_utils import eager_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lineahead.errors import ArchitectureError, InputError
from lineahead.plugins.augmented_attention.huggingface.cache import StateLayer
from lineahead.plugins.augmented_attention.huggingface.layers import ATTRIBUTE
from lineahead.plugins.augmented_attention.huggingface.padding import Packing, token_columns
from lineahead.plugins.augmented_attention.huggingface.running import Running
from lineahead.plugins.augmented_attention.huggingface.summary import SummaryLayer, source_columns
from lineahead.plugins.augmented_attention.module import AugmentedAttention, CrossAttention

NAMESPACE = "lineahead"  # the bundled copy uses another, so that both can live in one process

Softmax = Literal["sdpa", "eager"]
Attended = tuple[Tensor, Tensor | None]


@dataclass(frozen=True, kw_only=True)
class LayerCall:
    """One converted layer's inputs and its softmax output, as given to a :func:`transfer` callback.

    Attributes:
        module: the attention module; ``module.lineahead`` is its operator.
        query: ``[B, H, T, D]``, after RoPE.
        key: ``[B, Hkv, T, D]``.
        value: ``[B, Hkv, T, Dv]``.
        output: ``[B, H, T, Dv]``, what softmax attention gives.
        scaling: multiplier of ``q . k``.
        valid: ``[B, T]`` bool, False at padding; None without padding.
    """

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    scaling: float
    valid: Tensor | None

    def linear(self) -> Tensor:
        """What the layer's operator gives for the same inputs, ``[B, H, T, Dv]``, zero at padding."""
        operator = operator_of(self.module)
        assert operator is not None
        return whole_text(operator, self.query, self.key, self.value, self.scaling, self.valid)


Record = Callable[[LayerCall], None]


@dataclass(frozen=True, kw_only=True)
class _SoftmaxMode:
    record: Record | None
    layers: frozenset[int] | None = None  # all when None

    def covers(self, module: nn.Module) -> bool:
        return self.layers is None or getattr(module, "layer_idx", None) in self.layers


_MODE: Running[_SoftmaxMode] = Running("lineahead_mode")
_POSITIONS: Running[Tensor] = Running("lineahead_positions")
_LAYER: ContextVar[StateLayer | SummaryLayer | None] = ContextVar("lineahead_layer", default=None)


@contextmanager
def teacher() -> Iterator[None]:
    """Within it, converted layers run the original softmax attention, with its KV cache if one is used."""
    with _MODE.holding(_SoftmaxMode(record=None)):
        yield


@contextmanager
def softmax_at(layers: Collection[int]) -> Iterator[None]:
    """Within it, the converted layers with these indices run softmax attention, the others stay linear.

    For passes without a cache: what a model would be that keeps these layers.
    """
    with _MODE.holding(_SoftmaxMode(record=None, layers=frozenset(layers))):
        yield


@contextmanager
def transfer(record: Record) -> Iterator[None]:
    """Like :func:`teacher`, and `record` is given every converted layer's inputs and softmax output."""
    with _MODE.holding(_SoftmaxMode(record=record)):
        yield


@contextmanager
def several_texts(positions: Tensor) -> Iterator[None]:
    """Within it, rows hold several texts that know nothing of each other, in all layers and modes.

    For passes without a cache, of causal models, whose ``position_ids`` are `positions`.

    Args:
        positions: ``[B, N]`` int64: 0 where a text begins, which must be at a multiple of every converted
            layer's window; what pads a text to that length counts on.
    """
    with _POSITIONS.holding(positions):
        yield


def in_softmax_mode() -> bool:
    """Whether :func:`teacher` or :func:`transfer` is active."""
    return _MODE.get() is not None


@dataclass(frozen=True, kw_only=True)
class Implementation:
    """One entry of transformers' attention table.

    Attributes:
        softmax: how unconverted layers, and all layers in softmax mode, attend: as the original model did.
        hybrid: whether unconverted layers exist; they need softmax masks, else padding is handed on.
    """

    softmax: Softmax
    hybrid: bool

    @property
    def name(self) -> str:
        """Its key in the table, the value of ``config._attn_implementation``."""
        return NAMESPACE + {"sdpa": "", "eager": "_eager"}[self.softmax] + ("_hybrid" if self.hybrid else "")

    def attention(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> Attended:
        """Attend, by the module's operator if it has one; called by transformers.

        Args:
            module: the attention module.
            query: ``[B, H, T, D]``, after RoPE.
            key: ``[B, Hkv, N, D]``; N = T for converted layers.
            value: ``[B, Hkv, N, Dv]``.
            attention_mask: what :meth:`mask` returned, or the caller's own.
            scaling: multiplier of ``q . k``; ``D ** -0.5`` when None.
            dropout: used by softmax attention only.
            kwargs: the model's further arguments, for softmax attention.

        Returns:
            ``[B, T, H, Dv]``, and None or the softmax weights.

        Raises:
            InputError: when a converted layer is given a growing KV cache.
            ArchitectureError: when an unconverted layer is given a mask it cannot use.
        """
        operator, mode, layer = operator_of(module), _MODE.get(), _LAYER.get()
        _LAYER.set(None)
        if operator is None or (mode is not None and mode.covers(module)):
            result = self._softmax(module, query, key, value, attention_mask, scaling, dropout, kwargs)
            if mode is not None and mode.record is not None and operator is not None:
                mode.record(_layer_call(module, query, key, value, attention_mask, scaling, result[0]))
            return result
        nodes, factor = query.shape[2], query.shape[3] ** -0.5 if scaling is None else scaling
        if operator.settings.causal and key.shape[2] != nodes:
            raise InputError(
                f"layer {getattr(module, 'layer_idx', '?')}: given {key.shape[2]} keys for {nodes} queries",
                hint="Pass no past_key_values, or a new DynamicCache(): its layers become states.",
            )
        valid = _valid(operator, attention_mask, key)
        attend: Callable[..., Tensor] = whole_text if layer is None else layer.attend
        return attend(operator, query, key, value, factor, valid).transpose(1, 2).contiguous(), None

    def mask(
        self,
        *,
        q_length: int | None = None,
        cache_position: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor | None:
        """The mask that the layers are given; called by transformers once per forward and kind of mask.

        Args:
            q_length: T.
            cache_position: ``[T]``, instead of `q_length`, from transformers before 5.8.
            attention_mask: ``[B, N]`` bool, False at padding, or None.
            kwargs: the rest of ``masking_utils.sdpa_mask``'s arguments.

        Returns:
            None or ``[B, T]`` bool when all layers are converted, else the softmax implementation's own mask.

        Raises:
            InputError: for packed texts or masks that are not causal.
        """
        rows: dict[str, Any] = {"q_length": q_length}
        if cache_position is not None:
            rows, q_length = {"cache_position": cache_position}, len(cache_position)
            kwargs.setdefault("q_offset", int(cache_position[0]))
        assert q_length is not None
        for_cross_attention = bool(kwargs.get("allow_is_bidirectional_skip", False))
        if not for_cross_attention and _POSITIONS.get() is None:
            _refuse_custom(q_length, kwargs)
        if for_cross_attention or self.hybrid or in_softmax_mode():
            make = sdpa_mask if self.softmax == "sdpa" else eager_mask
            if cache_position is not None:
                del kwargs["q_offset"]
            return make(**rows, attention_mask=attention_mask, **kwargs)
        return token_columns(attention_mask, q_length)

    def register(self) -> str:
        """Enter the functions in transformers' tables and return the name."""
        AttentionInterface.register(self.name, self.attention)
        AttentionMaskInterface.register(self.name, self.mask)
        return self.name

    def _softmax(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float | None,
        dropout: float,
        kwargs: dict[str, Any],
    ) -> Attended:
        if mask is not None and mask.dim() == 2:
            raise ArchitectureError(
                f"{type(module).__name__} is not converted, but was given a padding mask only",
                hint="Convert all attention layers of this model, or run it without padding.",
            )
        own = getattr(module, "eager_attention", None)
        if self.softmax == "eager" and own is not None:
            return cast(Attended, own(query, key, value, mask))
        if self.softmax == "eager":
            attend = sys.modules[type(module).__module__].eager_attention_forward
        else:
            attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
        return cast(
            Attended, attend(module, query, key, value, mask, scaling=scaling, dropout=dropout, **kwargs)
        )


def operator_of(module: nn.Module) -> AugmentedAttention | None:
    """The operator attached to an attention module, or None for an unconverted one."""
    return cast("AugmentedAttention | None", module._modules.get(ATTRIBUTE))


def whole_text(
    operator: AugmentedAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    valid: Tensor | None,
) -> Tensor:
    """The form without a cache, over texts with padding anywhere; arguments as in :meth:`StateLayer.attend`.

    Under cross attention `valid` is the source's, ``[B, N]``.
    """
    if isinstance(operator, CrossAttention):
        return operator(query, key, value, scaling, valid)  # type: ignore[no-any-return]
    if not operator.settings.causal:
        packing = Packing.of(torch.ones_like(query[:, 0, :, 0], dtype=torch.bool) if valid is None else valid)
        packed = (packing.pack(x) for x in (query, key, value))
        return packing.unpack(operator(*packed, scaling, packing.valid.sum(1)))
    if valid is None:
        return operator(query, key, value, scaling, starts=_starts(operator))  # type: ignore[no-any-return]
    packing = Packing.of(valid)
    return packing.unpack(operator(packing.pack(query), packing.pack(key), packing.pack(value), scaling))


def _starts(operator: AugmentedAttention) -> Tensor | None:
    """The chunk in which each chunk's text begins, ``[B, chunks]``; None where each row is one text."""
    positions, size = _POSITIONS.get(), operator.settings.window
    if positions is None:
        return None
    numbers = positions[:, ::size] // size
    return torch.arange(numbers.shape[1], device=numbers.device) - numbers


def find_state(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of converted attention modules: transformers does not hand the function their cache.

    A cache layer that holds nothing yet is replaced by a :class:`StateLayer`: any dynamic cache works.

    Raises:
        InputError: when the cache has another kind of layer there.
    """
    cache = next((x for x in (*args, *kwargs.values()) if isinstance(x, Cache)), None)
    kind: type[StateLayer | SummaryLayer] = StateLayer
    if isinstance(operator_of(module), CrossAttention):
        kind = SummaryLayer
    if isinstance(cache, EncoderDecoderCache):
        crosses = kind is SummaryLayer
        cache = cache.cross_attention_cache if crosses else cache.self_attention_cache
    if cache is None or in_softmax_mode():
        _LAYER.set(None)
        return
    index = cast(int, module.layer_idx)
    while len(cache.layers) <= index and cache.layer_class_to_replicate is not None:
        cache.layers.append(cache.layer_class_to_replicate())
    layer = cache.layers[index]
    if not isinstance(layer, (StateLayer, SummaryLayer)):
        if not isinstance(layer, DynamicLayer) or layer.is_initialized:
            raise InputError(
                f"layer {index}: the cache holds a {type(layer).__name__}",
                hint="Drop cache_implementation and past_key_values: the state already has a constant size.",
            )
        layer = cache.layers[index] = kind()
    _LAYER.set(layer)


def _valid(operator: AugmentedAttention, mask: Tensor | None, key: Tensor) -> Tensor | None:
    """Which of the keys' columns hold tokens, from the layer's mask."""
    columns = token_columns if operator.settings.causal else source_columns
    return columns(mask, key.shape[2])


def _layer_call(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    output: Tensor,
) -> LayerCall:
    return LayerCall(
        module=module,
        query=query,
        key=key,
        value=value,
        output=output.transpose(1, 2),
        scaling=query.shape[3] ** -0.5 if scaling is None else scaling,
        valid=_valid(cast(AugmentedAttention, operator_of(module)), mask, key),
    )


def _refuse_custom(q_length: int, arguments: dict[str, Any]) -> None:
    """Refuse masks under which a token does not see its predecessor, or sees its successor."""
    if arguments.get("allow_is_causal_skip", True) or q_length == 1:
        return
    batch = torch.arange(arguments["batch_size"], device=arguments["device"])[:, None, None, None]
    head, row = torch.zeros_like(batch), torch.arange(q_length - 1, device=batch.device)
    row = row[:, None] + arguments.get("q_offset", 0)
    seen = arguments["mask_function"]
    if not bool(torch.as_tensor(seen(batch, head, row + 1, row)).all()) or bool(
        torch.as_tensor(seen(batch, head, row, row + 1)).any()
    ):
        raise InputError(
            "packed texts and masks that are not causal cannot be used with linear attention",
            hint="Give each text its own row (padding is fine) and no position_ids that restart.",
        )
