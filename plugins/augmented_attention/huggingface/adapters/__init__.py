"""Families that compute attention in classes of their own: one file each routes it through the table."""

from collections.abc import Callable

from torch import nn
from transformers import PreTrainedModel

from lineahead.plugins.augmented_attention.huggingface.adapters.falcon import FalconRouting
from lineahead.plugins.augmented_attention.huggingface.adapters.gpt_neo import GPTNeoRouting
from lineahead.plugins.augmented_attention.huggingface.adapters.gptj import GPTJRouting

ROUTINGS: dict[str, type] = {
    "FalconAttention": FalconRouting,
    "GPTNeoSelfAttention": GPTNeoRouting,
    "GPTJAttention": GPTJRouting,
}


def adapt(model: PreTrainedModel, subclass: Callable[[type, type], type]) -> None:
    """Give the attention modules of a model of these families a class that routes; others stay as they are.

    Their softmax attention, parameters and names do not change.

    Args:
        model: changed in place.
        subclass: makes ``class (mixin, base)``.
    """
    for module in model.modules():
        routing = ROUTINGS.get(type(module).__name__)
        if routing is not None:
            module.__class__ = subclass(routing, type(module))


def is_adapted(model: nn.Module) -> bool:
    """Whether :func:`adapt` has changed modules of `model`."""
    return any(isinstance(module, tuple(ROUTINGS.values())) for module in model.modules())
