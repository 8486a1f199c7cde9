"""Replace a loaded model's softmax attention by the operator, in place."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from lineahead.errors import ArchitectureError, InputError
from lineahead.plugins.augmented_attention.huggingface.discover import HINT, discover
from lineahead.plugins.augmented_attention.huggingface.discover_roles import (
    discover_roles,
    is_two_sided,
    probe_inputs,
)
from lineahead.plugins.augmented_attention.huggingface.layers import ATTRIBUTE, LinearLayer
from lineahead.plugins.augmented_attention.huggingface.modeling import become_linear, route_attention
from lineahead.plugins.augmented_attention.huggingface.softmax_layers import local_layers
from lineahead.plugins.augmented_attention.local_kernels import capped
from lineahead.plugins.augmented_attention.roles import role_settings
from lineahead.plugins.augmented_attention.schema import AttentionSettings

logger = logging.getLogger(__name__)


def linearize(
    model: PreTrainedModel,
    settings: AttentionSettings,
    *,
    layers: Sequence[int] | None = None,
    keep: Sequence[int] | Literal["local", "all"] = (),
) -> list[LinearLayer]:
    """Give attention layers freshly initialised operators, and route their attention to them.

    The model keeps its weights; its class becomes a subclass with a constant-size cache, so that `generate()`
    and `save_pretrained()` work. The new parameters are float32.

    Args:
        model: a loaded causal language model; changed in place.
        settings: the operator's settings, the same for all layers.
        layers: layer indices to convert; all when None. The others keep softmax attention and their KV cache.
        keep: of those, indices that are not converted after all; ``local``: the layers with a window of their
            own in a model that also has layers without; ``all``: none is converted, and the model decodes as
            before, with a cache that grows.

    Returns:
        The converted layers, by layer index.

    Raises:
        ArchitectureError: when the attention cannot be replaced.
        SettingsError: when the method has no causal form, or no form under the model's cap on scores; it
            says why.
        InputError: when `layers` or `keep` names no such layer, no layer is left, or the model is linear
            already.
    """
    if any(ATTRIBUTE in module._modules for module in model.modules()):
        raise InputError(f"{type(model).__name__} is linear already", hint="Load the original checkpoint.")
    if is_two_sided(model):
        if keep == "all":
            raise InputError(f"{type(model).__name__}: nothing is left to convert", hint="Keep fewer layers.")
        return linearize_roles(model, settings, layers=layers, keep=() if keep == "local" else keep)
    settings = replace(settings, causal=True)
    route_attention(model)
    found = discover(model)
    wanted = {layer.index for layer in found} if layers is None else set(layers)
    kept = wanted if keep == "all" else set(local_layers(model) if keep == "local" else keep)
    missing = sorted((wanted | kept) - {layer.index for layer in found})
    if missing:
        raise InputError(
            f"no attention layer {missing[:1]}: layers are {found[0].index} to {found[-1].index}",
            hint="Name existing layers, or leave `layers` out to convert all.",
        )
    wanted -= kept
    if not wanted and keep != "all":
        raise InputError(
            "no layer is left to convert",
            hint="Keep fewer layers, or all of them by name (keep_softmax=all) to export the original.",
        )
    converted = [
        LinearLayer(
            name=layer.name,
            index=layer.index,
            shape=layer.shape,
            settings=replace(settings, local=capped(settings.local, layer.softcap)),
        )
        for layer in found
        if layer.index in wanted
    ]
    become_linear(model, converted, hybrid=len(converted) < len(found))
    check_routing(model, converted)
    logger.info("%s: %d of %d attention layers converted", type(model).__name__, len(converted), len(found))
    return converted


def linearize_roles(
    model: PreTrainedModel,
    settings: AttentionSettings,
    *,
    layers: Sequence[int] | None = None,
    keep: Sequence[int] = (),
    cross: bool = True,
) -> list[LinearLayer]:
    """:func:`linearize` for encoders (BERT, RoBERTa) and encoder-decoders (T5, BART).

    Encoder layers become two-sided, decoder layers causal, and cross attention the global term alone over a
    summary of the source; ``plugins/augmented_attention/roles.py`` says how a method's settings follow.

    Args:
        model: changed in place.
        settings: the method's.
        layers: layer indices to convert, in encoder and decoder alike; all when None.
        keep: layer indices that stay softmax although `layers` names them.
        cross: whether cross attention is converted too; else it keeps softmax over all of the source.

    Returns:
        The converted layers: the encoder's, the decoder's, then cross attention.

    Raises:
        ArchitectureError: when the attention cannot be replaced.
        SettingsError: when the method has no form that the model needs.
        InputError: when `layers` names no such layer.
    """
    found = discover_roles(model)
    known = {layer.index for layer in found}
    wanted = known if layers is None else set(layers)
    missing = sorted((wanted | set(keep)) - known)
    if missing or not wanted - set(keep):
        raise InputError(
            f"no attention layer {missing[:1]}: layers are {min(known)} to {max(known)}",
            hint="Name existing layers, or leave `layers` out to convert all.",
        )
    converted = [
        LinearLayer(
            name=layer.name,
            index=layer.index,
            shape=layer.shape,
            settings=role_settings(settings, layer.role, position_bias=layer.position_bias),
            role=layer.role,
        )
        for layer in found
        if layer.index in wanted - set(keep) and (cross or layer.role != "cross")
    ]
    become_linear(model, converted, hybrid=len(converted) < len(found))
    check_routing(model, converted)
    logger.info("%s: %d of %d attention layers converted", type(model).__name__, len(converted), len(found))
    return converted


def check_routing(model: PreTrainedModel, layers: Sequence[LinearLayer]) -> None:
    """Run a few tokens and see that every converted layer's operator is called exactly once.

    Raises:
        ArchitectureError: naming the first layer that is not.
    """
    calls = dict.fromkeys((layer.name for layer in layers), 0)

    def count(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            calls[name] += 1

        return hook

    operators = [(layer.name, model.get_submodule(f"{layer.name}.{ATTRIBUTE}")) for layer in layers]
    handles = [operator.register_forward_hook(count(name)) for name, operator in operators]
    inputs: dict[str, Any] = {"input_ids": torch.ones(1, 1, dtype=torch.long, device=model.device)}
    if is_two_sided(model):
        inputs = dict(probe_inputs(model))
    if model.config.is_encoder_decoder or not is_two_sided(model):
        inputs["use_cache"] = False
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(**inputs)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    for name, times in calls.items():
        if times != 1:
            raise ArchitectureError(
                f"{type(model).__name__}, {name}: the operator ran {times} times", hint=HINT
            )
