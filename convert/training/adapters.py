"""Low-rank adapters (peft) on a linear model: for one stage, off for the teacher, merged at the end."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lineahead.errors import RecipeError
from lineahead.plugins.augmented_attention.huggingface.layers import ATTRIBUTE
from lineahead.plugins.augmented_attention.huggingface.modeling import layers_of
from lineahead.recipes.schema import Lora

_NAME = "default"


def attach_adapters(model: PreTrainedModel, lora: Lora, dtype: torch.dtype = torch.float32) -> None:
    """Put adapters of `dtype` on the recipe's targets; their parameters are the only ones with gradients.

    Raises:
        RecipeError: when a target names no linear module.
    """
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=_targets(model, lora),
    )
    inject_adapter_in_model(config, model)
    for layer in _layers(model).values():
        layer.train(lora.dropout > 0)  # type: ignore[attr-defined]
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.to(dtype)
            parameter.requires_grad_(True)


def adapter_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The adapters' parameters by name."""
    return {name: parameter for name, parameter in model.named_parameters() if ".lora_" in name}


@contextmanager
def without_adapters(model: PreTrainedModel) -> Iterator[None]:
    """Within it the adapters do nothing."""
    layers = list(_layers(model).values())
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def weight_changes(model: PreTrainedModel) -> dict[str, Tensor]:
    """What merging adds to each adapted weight, float32, by the weight's name without adapters."""
    return {
        f"{name}.weight": layer.get_delta_weight(_NAME).detach().float()  # type: ignore[attr-defined]
        for name, layer in _layers(model).items()
    }


def _layers(model: PreTrainedModel) -> dict[str, LoraLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def _targets(model: PreTrainedModel, lora: Lora) -> list[str]:
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not model.get_output_embeddings()
    ]
    if lora.targets == "all-linear":
        return linear
    if lora.targets == "attention":
        owners = [layer.name + "." for layer in layers_of(model.config)]
        return [
            name
            for name in linear
            if any(name.startswith(owner) for owner in owners) and ATTRIBUTE not in name.split(".")
        ]
    chosen = [name for name in linear if name.split(".")[-1] in lora.targets or name in lora.targets]
    ends = {name.split(".")[-1] for name in linear}
    for target in lora.targets:
        if target not in ends and target not in linear:
            raise RecipeError(
                f"lora.targets: {type(model).__name__} has no linear module {target!r}",
                hint=f"Choose among: {', '.join(sorted(ends))}.",
            )
    return chosen
