"""A transformers causal LM as the explicit-state step graph: export traces it, the eager backend runs it."""

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from lineahead.errors import ArchitectureError
from lineahead.plugins.augmented_attention.custom_op import attributes, augmented_attention
from lineahead.plugins.augmented_attention.huggingface.layers import ATTRIBUTE, LinearLayer
from lineahead.plugins.augmented_attention.masks import tree_depth
from lineahead.plugins.augmented_attention.module import AugmentedAttention
from lineahead.plugins.augmented_attention.schema import OUTPUTS, PARAMETERS, STATE, state_shapes
from lineahead.plugins.augmented_attention.step import step

ATTENTION_NAME = "lineahead_step"


@dataclass
class _Call:
    """What the attention function and the LM head need to know about the running forward."""

    inputs: tuple[Tensor, ...]
    output_index: Tensor
    past: dict[int, tuple[Tensor, ...]]
    operands: dict[int, tuple[Tensor, ...]]
    present: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)
    hidden: Tensor | None = None


_CALL: ContextVar[_Call | None] = ContextVar("lineahead_step_call", default=None)


@contextlib.contextmanager
def _running(call: _Call) -> Iterator[_Call]:
    token = _CALL.set(call)
    try:
        yield call
    finally:
        _CALL.reset(token)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The registered attention function: one step of the layer's operator on the running call's state."""
    call, layer = _CALL.get(), getattr(module, ATTRIBUTE, None)
    if call is None or not isinstance(layer, AugmentedAttention):
        raise ArchitectureError(
            f"{type(module).__name__} ran as part of a step model but is not one of its converted layers",
            hint="Convert every attention layer, and call the StepModel instead of the model inside it.",
        )
    index: int = module.layer_idx  # type: ignore[assignment]
    scale = layer.scale(query.shape[-1] ** -0.5 if scaling is None else scaling)
    ports = (query, key, value, *call.inputs, *call.past[index], *call.operands[index])
    if torch.compiler.is_exporting():
        results = augmented_attention(*ports, *attributes(layer.settings, scale).values())
    else:
        results = step(*ports, settings=layer.settings, scale=scale)
    call.present[index] = (*results[1:], value)
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
        model: the transformers model, with the parameters of every layer attached (``layers.attach``).
        layers: its attention layers, by index.
    """

    def __init__(self, model: PreTrainedModel, layers: Sequence[LinearLayer]) -> None:
        """Bind `model` and `layers`.

        Raises:
            ArchitectureError: when not every attention layer is converted, or there are no output embeddings.
        """
        super().__init__()
        self.layers = sorted(layers, key=lambda layer: layer.index)
        if [layer.index for layer in self.layers] != list(range(len(self.layers))):
            raise ArchitectureError(
                f"converted layers {[layer.index for layer in self.layers]} leave gaps",
                hint="A step graph needs every attention layer converted.",
            )
        if getattr(model.config, "lineahead", {}).get("hybrid"):
            raise ArchitectureError(
                f"{type(model).__name__} has softmax attention layers beside the converted ones",
                hint="A step graph needs every attention layer converted.",
            )
        head = model.get_output_embeddings()
        if head is None:
            raise ArchitectureError(
                f"{type(model).__name__} has no output embeddings", hint="Load it as a causal language model."
            )
        self.model = model.eval().requires_grad_(False)
        for layer in self.layers:
            for name, operand in zip(PARAMETERS, self.operator(layer.index).operands(), strict=True):
                self.register_buffer(f"operand_{layer.index}_{name}", operand.detach(), persistent=False)
        self.model.set_attn_implementation(ATTENTION_NAME)
        head.register_forward_pre_hook(_select_rows)

    def operator(self, index: int) -> AugmentedAttention:
        """The parameters of layer `index`."""
        module = self.model.get_submodule(f"{self.layers[index].name}.{ATTRIBUTE}")
        assert isinstance(module, AugmentedAttention)
        return module

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
            past=self._by_layer(past, length.device),
            operands={layer.index: self._operands(layer.index) for layer in self.layers},
        )
        position = (length + accept_count)[:, None] + tree_depth(ancestors)
        with _running(call):
            logits = self.model(input_ids=input_ids, position_ids=position, use_cache=False).logits
        assert call.hidden is not None
        return (logits.float(), call.hidden.float(), length + accept_count, *self._present(call))

    def empty(self, batch: int) -> list[Tensor]:
        """The `past` and `pending` arguments of the first call: no tokens, no pending rows."""
        device, dtype, tensors = self.model.device, self.model.dtype, []
        for layer in self.layers:
            shapes = state_shapes(layer.settings, layer.shape, self.operator(layer.index).features, batch)
            for name, shape in shapes.items():
                kind = torch.float32 if name in ("state", "norm") else dtype
                tensors.append(torch.zeros(shape, dtype=kind, device=device))
            for width in (layer.shape.head_dim, layer.shape.value_dim):
                tensors.append(torch.zeros(batch, layer.shape.kv_heads, 0, width, dtype=dtype, device=device))
        return tensors

    def _by_layer(self, past: tuple[Tensor, ...], device: torch.device) -> dict[int, tuple[Tensor, ...]]:
        """State, then pending key and value of each layer; a placeholder for every port it does not have."""
        flat, result = iter(past), {}
        for layer in self.layers:
            have = {name: next(flat) for name in layer.settings.state_ports}
            state = [have[name] if name in have else torch.zeros(1, device=device) for name in STATE]
            result[layer.index] = (*state, next(flat), next(flat))
        return result

    def _operands(self, index: int) -> tuple[Tensor, ...]:
        return tuple(self.get_buffer(f"operand_{index}_{name}") for name in PARAMETERS)

    def _present(self, call: _Call) -> list[Tensor]:
        tensors = []
        for layer in self.layers:
            *state, pending_key, pending_value = call.present[layer.index]
            named = dict(zip(OUTPUTS[1:-1], state, strict=True))
            tensors += [named[name] for name in layer.settings.state_ports]
            tensors += [pending_key, pending_value]
        return tensors
