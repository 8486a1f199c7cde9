"""The yardstick: the whole model in float64, its attention the per-token reference, each text by itself."""

import copy
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lineahead.plugins.augmented_attention.huggingface.attention import operator_of
from lineahead.plugins.augmented_attention.module import AugmentedAttention, CrossAttention
from lineahead.plugins.augmented_attention.reference import augmented_attention_ref

NAME = "lineahead_reference"
Text = tuple[int, ...]


def reference_model(model: PreTrainedModel) -> PreTrainedModel:
    """A float64 copy of a linear model whose converted layers run the per-token reference."""
    twin = float64_model(model)
    twin.set_attn_implementation(NAME)
    return twin


def float64_model(model: PreTrainedModel) -> PreTrainedModel:
    """A float64 copy of a linear model in the training form: the yardstick of texts too long to loop over."""
    twin: PreTrainedModel = copy.deepcopy(model).double().eval()
    return twin


@torch.no_grad()
def expected_logits(
    model: PreTrainedModel, texts: Sequence[Text], source: Text = ()
) -> dict[Text, NDArray[np.float64]]:
    """Logits ``[len(text), V]`` of each text, float64.

    Texts run side by side, filled up on the right with a token that no causal model lets them see.

    Args:
        model: as :func:`reference_model` or :func:`float64_model` returns it.
        texts: token ids.
        source: what an encoder-decoder's encoder reads; then `texts` are its decoder's.
    """
    width = max(len(text) for text in texts)
    ids = torch.tensor([[*text, *[text[-1]] * (width - len(text))] for text in texts])
    inputs: dict[str, Any] = {"input_ids": ids}
    if source:  # read once: the reference is slow, and the rows would be equal
        hidden = encoded(model, input_ids=torch.tensor([source])).expand(len(texts), -1, -1)
        inputs = {"encoder_outputs": BaseModelOutput(hidden), "decoder_input_ids": ids}
    logits = model(**inputs, use_cache=False).logits.double().numpy()
    return {text: logits[row, : len(text)] for row, text in enumerate(texts)}


@torch.no_grad()
def encoded(model: PreTrainedModel, **inputs: Tensor) -> Tensor:
    """What an encoder, or an encoder-decoder's, says of texts: its hidden states ``[B, N, C]``."""
    encoder: Any = model.get_encoder() if model.config.is_encoder_decoder else model.base_model
    hidden: Tensor = encoder(**inputs).last_hidden_state
    return hidden


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    """The attention function that transformers calls; layers that are not converted keep their softmax."""
    operator = operator_of(module)
    if operator is None:
        own = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        softer = own if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None else None
        softmax = softer or ALL_ATTENTION_FUNCTIONS["sdpa"]
        return softmax(module, query, key, value, attention_mask, scaling=scaling, **kwargs)  # type: ignore[no-any-return]
    scale = operator.scale(query.shape[-1] ** -0.5 if scaling is None else scaling)
    attend = _across if isinstance(operator, CrossAttention) else _reference
    output = attend(operator, query, key, value, scale)
    return output.to(query.dtype).transpose(1, 2).contiguous(), None


def _across(operator: AugmentedAttention, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Cross attention by the per-token reference, whose row i is then of query i and every key alone.

    There are as many queries as keys in one call of it; further queries take further calls.
    """
    parts, length = [], key.shape[2]
    for part in query.split(length, 2):
        filled = functional.pad(part, (0, 0, 0, length - part.shape[2]))
        parts.append(_reference(operator, filled, key, value, scale)[:, :, : part.shape[2]])
    return torch.cat(parts, 2)


def _reference(
    operator: AugmentedAttention, query: Tensor, key: Tensor, value: Tensor, scale: float
) -> Tensor:
    alpha, local_scale, conv, query_map, key_map = operator.operands(query)
    return augmented_attention_ref(
        query,
        key,
        value,
        alpha,
        local_scale,
        conv if operator.settings.conv_taps else conv.new_zeros(query.shape[1], 1),
        query_map if query_map.dim() == 3 else None,
        key_map if key_map.dim() == 3 else None,
        settings=operator.settings,
        scale=scale,
    )


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
