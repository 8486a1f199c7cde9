"""Which of a linear model's parameters are new, and the precision of those that are not."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lineahead.errors import RecipeError
from lineahead.plugins.augmented_attention.huggingface.layers import ATTRIBUTE
from lineahead.plugins.augmented_attention.module import AugmentedAttention
from lineahead.recipes.schema import Stage, TransferStage

Resolved = Literal["fp32", "bf16"]


def is_new(name: str) -> bool:
    """Whether the parameter called `name` was added by conversion."""
    return ATTRIBUTE in name.split(".")


def new_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The parameters that conversion added, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if is_new(name)}


def require_trainable(stages: Sequence[Stage], new: int) -> None:
    """Refuse stages that train new parameters alone, under a method that has none.

    Args:
        stages: a recipe's, in order.
        new: how many numbers conversion added.

    Raises:
        RecipeError: naming the stage.
    """
    for index, stage in enumerate(stages):
        if new == 0 and (isinstance(stage, TransferStage) or stage.trainable == "new"):
            raise RecipeError(
                f"stage {index} ({stage.kind}) trains what conversion added, "
                "and this method adds no parameters",
                hint="Use a distill stage with trainable: lora or full in its place.",
            )


def tensors_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """All parameters, and what conversion added without training it: projections that are drawn once."""
    buffers = {name: buffer for name, buffer in model.named_buffers() if is_new(name)}
    return {**dict(model.named_parameters()), **buffers}


def layer_of(name: str) -> str:
    """The layer that a parameter belongs to, in words."""
    parts = name.split(".")
    return ".".join(parts[: parts.index(ATTRIBUTE)]) if ATTRIBUTE in parts else ".".join(parts[:-1])


def resolve_precision(wanted: Literal["auto", "fp32", "bf16"], device: torch.device) -> Resolved:
    """bfloat16 where the hardware multiplies it faster than float32, if the recipe leaves the choice."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    amx = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return "bf16" if device.type == "cpu" and amx is not None and amx() else "fp32"


def narrow_products(
    model: PreTrainedModel, wanted: Literal["auto", "fp32", "bf16"], weights: Resolved
) -> bool:
    """Take the operators' products of bfloat16 operands where a recipe wants that and the weights are such.

    Returns:
        Whether they are; adapters then are bfloat16 too.
    """
    narrow = wanted == "bf16" and weights == "bf16"
    for module in model.modules():
        if isinstance(module, AugmentedAttention):
            module.narrow = narrow
    return narrow


def freeze(model: PreTrainedModel, precision: Resolved) -> None:
    """Stop all gradients and put the pretrained parameters in `precision`; the new ones stay float32."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model.eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if is_new(name) else dtype)
