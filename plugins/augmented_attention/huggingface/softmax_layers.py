"""The attention layers that stay softmax: which keys they see, asked of the model's own masks."""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lineahead.errors import ArchitectureError
from lineahead.plugins.augmented_attention.huggingface.discover import found_layers, probe
from lineahead.plugins.augmented_attention.schema import AttentionSettings, LayerShape
from lineahead.plugins.softmax_attention.schema import CacheSettings, Pattern

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SoftmaxLayer:
    """One attention layer that is not converted.

    Attributes:
        name: dotted path of the attention module.
        index: its ``layer_idx``.
        shape: its heads.
        pattern: which keys it sees.
        window: in tokens; 0 when it sees the whole text.
        plain: whether its scores are those of plain softmax attention, without cap or learned sinks.
    """

    name: str
    index: int
    shape: LayerShape
    pattern: Pattern
    window: int
    plain: bool

    @property
    def settings(self) -> AttentionSettings | CacheSettings:
        """How a step graph runs it: a window is a case of the linear operator, all else needs a cache."""
        if self.pattern == "whole" or not self.plain:
            return CacheSettings(pattern=self.pattern, window=self.window)
        return AttentionSettings(
            local="softmax",
            pattern=self.pattern,
            window=self.window,
            feature_map="none",
            normalizer="denominator",
            qk_norm=False,
            conv_taps=0,
            eps=0.0,
        )


@dataclass(frozen=True, kw_only=True)
class _View:
    pattern: Pattern
    window: int


def softmax_layers(model: PreTrainedModel, converted: Collection[int]) -> list[SoftmaxLayer]:
    """The model's attention layers but those with the indices `converted`, by layer index.

    Raises:
        ArchitectureError: when one of them sees keys in a way that a step graph cannot express.
    """
    found = []
    for layer, view, plain in _views(model):
        if layer.index in converted:
            continue
        if view is None:
            raise ArchitectureError(
                f"{type(model).__name__}, {layer.name}: its mask is its own, so it cannot stay softmax",
                hint="Convert this layer too.",
            )
        found.append(
            SoftmaxLayer(
                name=layer.name,
                index=layer.index,
                shape=layer.shape,
                pattern=view.pattern,
                window=view.window,
                plain=plain,
            )
        )
    return found


def local_layers(model: PreTrainedModel) -> tuple[int, ...]:
    """Indices of the layers with a window of their own, if the model also has layers without; else none."""
    try:
        views = _views(model)
    except ArchitectureError as error:  # it may still convert as a whole
        logger.info("what the layers see is not known: %s", error)
        return ()
    windows = {layer.index: bool(view and view.window) for layer, view, _ in views}
    return tuple(index for index, local in windows.items() if local) if not all(windows.values()) else ()


def _views(model: PreTrainedModel) -> list[tuple[Any, _View | None, bool]]:
    """Every attention layer, what it sees (None when that is not known), and whether its scores are plain."""
    marks: list[tuple[Tensor, _View | None]] = []

    def mark(
        *, batch_size: int, q_length: int, kv_length: int, mask_function: Callable[..., Any], **kwargs: Any
    ) -> Tensor:
        device = kwargs.get("device", "cpu")
        view = _view(mask_function, kwargs.get("local_size"), device)
        mask = torch.ones(batch_size, 1, q_length, kv_length, dtype=torch.bool, device=device)
        marks.append((mask, view))
        return mask

    calls = probe(model, mark)
    seen = {mask.untyped_storage().data_ptr(): view for mask, view in marks}
    layers = found_layers(model, calls)
    result = []
    for layer, call in zip(layers, calls, strict=True):
        view = None if call.mask is None else seen.get(call.mask.untyped_storage().data_ptr())
        if call.window:
            view = _View(pattern="sliding", window=call.window)
        result.append((layer, view, call.plain))
    return sorted(result, key=lambda one: one[0].index)


def _view(seen: Callable[..., Any], size: int | None, device: Any) -> _View | None:
    """What a mask function of local size `size` shows, asked at the edges of its first window.

    None when it is neither a sliding window nor groups.
    """
    if not size:
        return _View(pattern="whole", window=0)
    zero = torch.zeros(3, dtype=torch.long, device=device)
    query = torch.tensor([size - 1, size, size], device=device)
    key = torch.tensor([0, 0, size - 1], device=device)
    edges = tuple(torch.as_tensor(seen(zero, zero, query, key)).tolist())
    if edges == (True, False, size > 1):
        return _View(pattern="sliding", window=size)
    if edges == (True, False, False):
        return _View(pattern="grouped", window=size)
    return None
