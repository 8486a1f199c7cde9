"""A transformers causal LM as the explicit-state step graph: export traces it, the eager backend runs it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from lineahead.errors import ArchitectureError
from lineahead.plugins.augmented_attention.custom_op import attributes, augmented_attention
from lineahead.plugins.augmented_attention.huggingface.layers import ATTRIBUTE, LinearLayer
from lineahead.plugins.augmented_attention.huggingface.modeling import is_hybrid
from lineahead.plugins.augmented_attention.huggingface.positions import require_given_positions
from lineahead.plugins.augmented_attention.huggingface.running import Running
from lineahead.plugins.augmented_attention.huggingface.softmax_layers import SoftmaxLayer, softmax_layers
from lineahead.plugins.augmented_attention.masks import tree_depth
from lineahead.plugins.augmented_attention.module import AugmentedAttention
from lineahead.plugins.augmented_attention.schema import (
    OUTPUTS,
    PARAMETERS,
    STATE,
    AttentionSettings,
    state_shapes,
)
from lineahead.plugins.augmented_attention.step import step
from lineahead.plugins.softmax_attention.schema import CacheSettings, capacity
from lineahead.plugins.softmax_attention.step import cache_step

ATTENTION_NAME = "lineahead_step"


@dataclass
class _Call:
    """What the attention function and the LM head need to know about the running forward."""

    inputs: tuple[Tensor, ...]
    output_index: Tensor
    settings: dict[int, AttentionSettings | CacheSettings]
    past: dict[int, tuple[Tensor, ...]]
    operands: dict[int, tuple[Tensor, ...]]
    present: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)
    hidden: Tensor | None = None


_CALL: Running[_Call] = Running("lineahead_step_call")


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The registered attention function: one step of the layer on the running call's state."""
    call, index = _CALL.get(), getattr(module, "layer_idx", None)
    settings = None if call is None else call.settings.get(index)  # type: ignore[arg-type]
    if call is None or settings is None:
        raise ArchitectureError(
            f"{type(module).__name__} ran as part of a step model but is not one of its layers",
            hint="Convert the checkpoint again, and call the StepModel instead of the model inside it.",
        )
    assert isinstance(index, int)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    ports = (query, key, value, *call.inputs, *call.past[index])
    if isinstance(settings, CacheSettings):
        results: tuple[Tensor, ...] = cache_step(
            *ports, settings=settings, scale=scale, softcap=kwargs.get("softcap"), sinks=kwargs.get("s_aux")
        )
        call.present[index] = (*results[1:], key, value)
        return results[0].transpose(1, 2), None
    operator = getattr(module, ATTRIBUTE, None)
    scale = operator.scale(scale) if isinstance(operator, AugmentedAttention) else scale
    ports = (*ports, *call.operands[index])
    if torch.compiler.is_exporting():
        results = augmented_attention(*ports, *attributes(settings, scale).values())
    else:
        results = step(*ports, settings=settings, scale=scale)
    named = dict(zip(OUTPUTS[1:], results[1:], strict=True))
    state = [named[name] for name in settings.state_ports]
    call.present[index] = (*state, named["pending_key"], value)
    return results[0].transpose(1, 2), None


AttentionInterface.register(ATTENTION_NAME, _attention)
AttentionMaskInterface.register(ATTENTION_NAME, lambda *_, **__: None)


def _select_rows(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Pre-hook of the LM head: keep the rows that are asked for, before the head costs anything."""
    call = _CALL.get()
    if call is None:
        return None
    hidden, rows = arguments[0], torch.arange(call.output_index.shape[0], device=arguments[0].device)
    call.hidden = hidden[rows[:, None], call.output_index]
    return (call.hidden, *arguments[1:])


class StepModel(nn.Module):
    """An unmodified transformers model with its state as arguments; ports as in ``plugins/step_graph.py``.

    The learned operands are read once, here: build it after training. The model inside is switched to this
    attention and
    serves nothing else until `set_attn_implementation` is called again.

    Attributes:
        model: the transformers model, with the parameters of every converted layer (``layers.attach``).
        layers: its attention layers, by index; those that are not converted run softmax attention.
    """

    def __init__(self, model: PreTrainedModel, layers: Sequence[LinearLayer]) -> None:
        """Bind `model` and its converted `layers`.

        Raises:
            ArchitectureError: when a softmax layer's mask is its own, the model counts positions its own way,
                or there are no output embeddings.
        """
        super().__init__()
        if model.config.is_encoder_decoder and type(self) is StepModel:
            raise ArchitectureError(
                f"{type(model).__name__} is an encoder-decoder: its step graph cannot be exported yet",
                hint="Decode it with the eager backend.",
            )
        kept: list[SoftmaxLayer] = []
        if is_hybrid(model.config):
            kept = softmax_layers(model, {layer.index for layer in layers})
        self.layers: list[LinearLayer | SoftmaxLayer] = sorted([*layers, *kept], key=lambda one: one.index)
        if [layer.index for layer in self.layers] != list(range(len(self.layers))):
            raise ArchitectureError(
                f"attention layers {[layer.index for layer in self.layers]} leave gaps",
                hint="A step graph needs an attention layer at every index.",
            )
        head = model.get_output_embeddings()
        if head is None:
            raise ArchitectureError(
                f"{type(model).__name__} has no output embeddings",
                hint="Convert a language model: this one has another head.",
            )
        self.model = model.eval().requires_grad_(False)
        if not model.config.is_encoder_decoder:  # whose decoder is given its positions by the subclass
            require_given_positions(model)
        for layer in self.layers:
            for name, operand in zip(PARAMETERS, self._learned(layer), strict=True):
                self.register_buffer(f"operand_{layer.index}_{name}", operand.detach(), persistent=False)
        self.model.set_attn_implementation(ATTENTION_NAME)
        head.register_forward_pre_hook(_select_rows)

    def operator(self, index: int) -> AugmentedAttention:
        """The parameters of the converted layer `index`."""
        module = self.model.get_submodule(f"{self.layers[index].name}.{ATTRIBUTE}")
        assert isinstance(module, AugmentedAttention)
        return module

    def _learned(self, layer: LinearLayer | SoftmaxLayer) -> tuple[Tensor, ...]:
        if isinstance(layer, LinearLayer):
            return self.operator(layer.index).operands(next(self.model.parameters()))
        sizes = {"alpha": layer.shape.heads, "local_scale": layer.shape.heads}
        return tuple(torch.ones(sizes.get(name, 1), device=self.model.device) for name in PARAMETERS)

    def forward(
        self,
        input_ids: Tensor,
        ancestors: Tensor,
        output_index: Tensor,
        accept_index: Tensor,
        accept_count: Tensor,
        length: Tensor,
        *past: Tensor,
    ) -> tuple[Tensor, ...]:
        """Run one step; shapes, order and meaning as in :mod:`lineahead.plugins.step_graph`."""
        call = _Call(
            inputs=(ancestors, length, accept_index, accept_count),
            output_index=output_index,
            settings={layer.index: layer.settings for layer in self.layers},
            past=self._by_layer(past, length.device),
            operands={layer.index: self._operands(layer.index) for layer in self.layers},
        )
        position = (length + accept_count)[:, None] + tree_depth(ancestors)
        with _CALL.holding(call):
            logits = self.logits(input_ids, position)
        assert call.hidden is not None
        return (logits.float(), call.hidden.float(), length + accept_count, *self._present(call))

    def logits(self, input_ids: Tensor, position: Tensor) -> Tensor:
        """Run the model over the nodes ``[B, T]`` at their positions."""
        logits: Tensor = self.model(input_ids=input_ids, position_ids=position, use_cache=False).logits
        return logits

    @property
    def extra_names(self) -> list[str]:
        """Names of the carried tensors that belong to no layer's ports."""
        return []

    def empty(self, batch: int, *, rows: int = 0) -> list[Tensor]:
        """The `past` and `pending` arguments of the first call: no tokens, no pending rows.

        Args:
            batch: number of sequences.
            rows: that growing caches must hold.
        """
        device, dtype, tensors = self.model.device, self.model.dtype, []
        for layer in self.layers:
            shape = layer.shape
            if isinstance(layer.settings, CacheSettings):
                held = (batch, shape.kv_heads, capacity(rows))
                shapes: dict[str, tuple[int, ...]] = {
                    "key": (*held, shape.head_dim),
                    "value": (*held, shape.value_dim),
                }
            else:
                features = self.operator(layer.index).features if isinstance(layer, LinearLayer) else 0
                shapes = state_shapes(layer.settings, shape, features, batch)
            for name, size in shapes.items():
                kind = torch.float32 if name in ("state", "norm") else dtype
                tensors.append(torch.zeros(size, dtype=kind, device=device))
            for width in (shape.head_dim, shape.value_dim):
                tensors.append(torch.zeros(batch, shape.kv_heads, 0, width, dtype=dtype, device=device))
        return tensors

    def _by_layer(self, past: tuple[Tensor, ...], device: torch.device) -> dict[int, tuple[Tensor, ...]]:
        """State, then pending key and value of each layer; a placeholder for every port it does not have."""
        flat, result = iter(past), {}
        for layer in self.layers:
            have = {name: next(flat) for name in layer.settings.state_ports}
            names = have if isinstance(layer.settings, CacheSettings) else STATE
            state = [have[name] if name in have else torch.zeros(1, device=device) for name in names]
            result[layer.index] = (*state, next(flat), next(flat))
        return result

    def _operands(self, index: int) -> tuple[Tensor, ...]:
        return tuple(self.get_buffer(f"operand_{index}_{name}") for name in PARAMETERS)

    def _present(self, call: _Call) -> list[Tensor]:
        return [tensor for layer in self.layers for tensor in call.present[layer.index]]
