"""An encoder-decoder as the explicit-state step graph of its decoder, and the reading of sources."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from lineahead.errors import ArchitectureError
from lineahead.plugins.augmented_attention.huggingface.attention import operator_of, whole_text
from lineahead.plugins.augmented_attention.huggingface.layers import LinearLayer
from lineahead.plugins.augmented_attention.huggingface.modeling import is_hybrid
from lineahead.plugins.augmented_attention.huggingface.running import Running
from lineahead.plugins.augmented_attention.huggingface.step_model import ATTENTION_NAME as DECODER
from lineahead.plugins.augmented_attention.huggingface.step_model import StepModel
from lineahead.plugins.augmented_attention.huggingface.summary import source_columns
from lineahead.plugins.augmented_attention.module import CrossAttention

ATTENTION_NAME = "lineahead_seq2seq_step"
SUMMARY_PORTS = ("source_state", "source_norm")
Summary = tuple[Tensor, Tensor]


@dataclass
class _Forward:
    """The running forward: reading a source (no `position`), or a step of the decoder.

    Attributes:
        summaries: of the sources, by layer index; filled while reading.
        position: ``[B, T]`` of the decoder's nodes.
    """

    summaries: dict[int, Summary] = field(default_factory=dict)
    position: Tensor | None = None


_FORWARD: Running[_Forward] = Running("lineahead_seq2seq_forward")


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The registered attention function of encoder, decoder and cross attention."""
    forward, operator = _FORWARD.get(), operator_of(module)
    if forward is None or operator is None:
        raise ArchitectureError(
            f"{type(module).__name__} ran as part of a step model but is not one of its layers",
            hint="Call the Seq2SeqStepModel instead of the model inside it.",
        )
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    if isinstance(operator, CrossAttention):
        index = cast(int, module.layer_idx)
        if forward.position is None:
            valid = source_columns(attention_mask, key.shape[2])
            forward.summaries[index] = operator.summarise(key, value, factor, valid)
        output = operator.attend(query, *forward.summaries[index], factor)
    elif forward.position is None:
        valid = None if operator.settings.causal else source_columns(attention_mask, key.shape[2])
        output = whole_text(operator, query, key, value, factor, valid)
    else:
        decode = cast(Callable[..., Any], AttentionInterface._global_mapping[DECODER])
        return cast(tuple[Tensor, None], decode(module, query, key, value, attention_mask, scaling, **kwargs))
    return output.transpose(1, 2), None


AttentionInterface.register(ATTENTION_NAME, _attention)
AttentionMaskInterface.register(ATTENTION_NAME, lambda *_, attention_mask=None, **__: attention_mask)


def _own_positions(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor | None:
    """Hook of a learned position table: look the nodes' own positions up."""
    forward = _FORWARD.get()
    if forward is None or forward.position is None:
        return None
    table = cast(nn.Embedding, module)
    return functional.embedding(forward.position + cast(int, table.offset), table.weight)


class Seq2SeqStepModel(StepModel):
    """The decoder of a converted encoder-decoder as a step graph; the source is read once, by :meth:`read`.

    The carried tensors are the decoder's, as in ``StepModel``, and after them a summary of each row's source
    for every layer, ``past.{i}.source_state`` and ``past.{i}.source_norm``, which a step hands on unchanged.
    """

    def __init__(self, model: PreTrainedModel, layers: Sequence[LinearLayer]) -> None:
        """Bind `model` and its converted `layers`.

        Raises:
            ArchitectureError: when layers are left as softmax, or the decoder's positions cannot be set.
        """
        self.crosses = sorted((one for one in layers if one.role == "cross"), key=lambda one: one.index)
        if is_hybrid(model.config) or not self.crosses:
            raise ArchitectureError(
                f"{type(model).__name__} keeps softmax attention layers",
                hint="Convert every layer, cross attention too, to decode it speculatively.",
            )
        crosses = self.crosses
        super().__init__(model, [layer for layer in layers if layer.role == "decoder"])
        self.crosses = crosses
        self.model.set_attn_implementation(ATTENTION_NAME)
        table = getattr(model.get_decoder(), "embed_positions", None)
        if table is not None:
            if not (isinstance(table, nn.Embedding) and hasattr(table, "offset")):
                raise ArchitectureError(
                    f"{type(model).__name__}: positions of {type(table).__name__} cannot be set",
                    hint="Use T5 or BART, or decode with generate().",
                )
            table.register_forward_hook(_own_positions)

    @property
    def extra_names(self) -> list[str]:
        """Names of the carried tensors after the decoder's."""
        return [f"past.{layer.index}.{name}" for layer in self.crosses for name in SUMMARY_PORTS]

    @torch.no_grad()
    def read(self, input_ids: Tensor, valid: Tensor) -> list[Tensor]:
        """Encode sources and sum them up.

        Args:
            input_ids: ``[B, N]``.
            valid: ``[B, N]`` bool, False at padding.

        Returns:
            What :attr:`extra_names` names.
        """
        model, mask = cast(Any, self.model), valid.long()
        with _FORWARD.holding(_Forward()) as forward:
            hidden = model.get_encoder()(input_ids=input_ids, attention_mask=mask).last_hidden_state
            model.get_decoder()(
                input_ids=torch.zeros_like(input_ids[:, :1]),
                encoder_hidden_states=hidden,
                encoder_attention_mask=mask,
                use_cache=False,
            )
        return [tensor for layer in self.crosses for tensor in forward.summaries[layer.index]]

    def forward(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        """Run one step of the decoder; as :meth:`StepModel.forward`, summaries last."""
        own = len(arguments) - 2 * len(self.crosses)
        carried = arguments[own:]
        pairs = zip(carried[::2], carried[1::2], strict=True)
        summaries = {layer.index: pair for layer, pair in zip(self.crosses, pairs, strict=True)}
        with _FORWARD.holding(_Forward(summaries=summaries)):
            return (*super().forward(*arguments[:own]), *carried)

    def logits(self, input_ids: Tensor, position: Tensor) -> Tensor:
        """Logits of the decoder's rows that are asked for; the encoder does not run."""
        forward = _FORWARD.get()
        assert forward is not None
        forward.position = position
        nothing = torch.zeros(
            input_ids.shape[0],
            1,
            cast(int, self.model.config.hidden_size),
            dtype=self.model.dtype,
            device=input_ids.device,
        )
        result: Tensor = self.model(
            encoder_outputs=(nothing,), decoder_input_ids=input_ids, use_cache=False
        ).logits
        return result

    def empty(self, batch: int, *, rows: int = 0) -> list[Tensor]:
        """As :meth:`StepModel.empty`, with summaries of nothing."""
        tensors = super().empty(batch, rows=rows)
        for layer in self.crosses:
            operator = operator_of(self.model.get_submodule(layer.name))
            assert operator is not None
            held = (batch, layer.shape.kv_heads, operator.features)
            for shape in ((*held, layer.shape.value_dim), held):
                tensors.append(torch.zeros(shape, dtype=torch.float32, device=self.model.device))
        return tensors
