"""Find the attention layers of encoders and encoder-decoders, and the part that each plays."""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.masking_utils import flash_attention_mask
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from lineahead.errors import ArchitectureError
from lineahead.plugins.augmented_attention.huggingface.discover import HINT, Call, probe
from lineahead.plugins.augmented_attention.roles import Role
from lineahead.plugins.augmented_attention.schema import LayerShape

POSITIONS = 512  # of models without a longest text


@dataclass(frozen=True, kw_only=True)
class RoleLayer:
    """One attention layer of an encoder or encoder-decoder.

    Attributes:
        name: dotted path of the attention module.
        index: its ``layer_idx``, counted in encoder and decoder apart.
        shape: its heads.
        role: what it does.
        position_bias: whether its softmax scores carry a learned relative bias.
    """

    name: str
    index: int
    shape: LayerShape
    role: Role
    position_bias: bool


def is_two_sided(model: PreTrainedModel) -> bool:
    """Whether the model is an encoder or an encoder-decoder."""
    config = model.config
    if getattr(config, "is_encoder_decoder", False):
        return True
    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)


def discover_roles(model: PreTrainedModel) -> list[RoleLayer]:
    """The attention layers of an encoder or encoder-decoder: encoder first, then decoder, then cross.

    Raises:
        ArchitectureError: when its attention cannot be replaced, saying why.
    """
    kind = type(model).__name__
    return _layers(model, kind, probe(model, flash_attention_mask, probe_inputs(model)))


def probe_inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    """A text of three tokens, for any encoder or encoder-decoder."""
    end = model.config.eos_token_id
    end = end if isinstance(end, int) else 1
    tokens = [*[token for token in range(1, 5) if token != end][:2], end]  # classifiers look for the end
    inputs = {"input_ids": torch.tensor([tokens], device=model.device)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    return inputs


def _layers(model: PreTrainedModel, kind: str, calls: list[Call]) -> list[RoleLayer]:
    if not calls:
        raise ArchitectureError(
            f"{kind} never calls transformers' attention table: its attention cannot be replaced",
            hint="Update transformers, which routes more models with every version, or choose another model.",
        )
    names = {id(module): name for name, module in model.named_modules()}
    found = [_layer(model, kind, call, names.get(id(call.module))) for call in calls]
    for (role, index), times in Counter((layer.role, layer.index) for layer in found).items():
        if times > 1:
            raise ArchitectureError(f"{kind}: {times} {role} attentions share layer index {index}", hint=HINT)
    order: tuple[Role, ...] = ("encoder", "decoder", "cross")
    return sorted(found, key=lambda layer: (order.index(layer.role), layer.index))


def _layer(model: PreTrainedModel, kind: str, call: Call, name: str | None) -> RoleLayer:
    (_, heads, _, dim), (_, kv_heads, _, key_dim) = call.query, call.key
    index = getattr(call.module, "layer_idx", None)
    if name is None or not isinstance(index, int):
        raise ArchitectureError(f"{kind}, {name}: its attention module has no layer index", hint=HINT)
    if dim != key_dim or heads % kv_heads:
        raise ArchitectureError(
            f"{kind}, {name}: {heads} query heads of {dim} do not fit {kv_heads} key heads of {key_dim}",
            hint=HINT,
        )
    inside = "decoder" in name.split(".") and model.config.is_encoder_decoder
    role: Role = "decoder" if call.causal else "cross" if inside else "encoder"
    config = model.config
    longest = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return RoleLayer(
        name=name,
        index=index,
        shape=LayerShape(
            heads=heads,
            kv_heads=kv_heads,
            head_dim=dim,
            value_dim=call.value[3],
            positions=int(longest or POSITIONS),
        ),
        role=role,
        position_bias=call.position_bias,
    )
