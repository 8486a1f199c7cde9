"""A conversion without its base weights: new parameters and low-rank changes of the pretrained ones."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from lineahead.convert.training.weights import is_new, tensors_of
from lineahead.errors import CheckpointError, LineaheadError
from lineahead.plugins.augmented_attention.huggingface.layers import LinearLayer
from lineahead.plugins.augmented_attention.huggingface.modeling import layers_of
from lineahead.recipes.files import replacing
from lineahead.recipes.manifest import Training

FORMAT = "lineahead-adapter-1"
_LEFT, _RIGHT, _WHOLE = ".left", ".right", ".change"


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """What an adapter file holds.

    Attributes:
        base: the checkpoint that it was trained on, as its manifest names it.
        layers: the converted layers and their settings.
        training: the stages that made it.
        tensors: new parameters by name; changes as ``NAME.left [out, r]`` times ``NAME.right
            [r, in]``, or whole as ``NAME.change``.
    """

    base: str
    layers: list[LinearLayer]
    training: tuple[Training, ...]
    tensors: dict[str, Tensor]


def extract_adapter(
    student: PreTrainedModel,
    original: PreTrainedModel,
    file: Path,
    *,
    rank: int,
    base: str,
    training: tuple[Training, ...] = (),
) -> float:
    """Write what distinguishes a trained artifact from its original checkpoint.

    Args:
        student: the artifact's model.
        original: the checkpoint that it was made from.
        file: where to write, as safetensors in float16.
        rank: singular values kept of each changed matrix; a LoRA stage changes matrices by its own rank.
        base: name of the original, for the file.
        training: the manifest's stages.

    Returns:
        The largest share of a change that the rank leaves out (a ratio of Frobenius norms).

    Raises:
        CheckpointError: when the models do not belong together.
    """
    before = dict(original.named_parameters())
    tensors: dict[str, Tensor] = {}
    worst = 0.0
    for name, parameter in tensors_of(student).items():
        value = parameter.detach().float().cpu()
        if is_new(name):
            tensors[name] = value
            continue
        if name not in before or before[name].shape != parameter.shape:
            raise CheckpointError(f"{name}: not in the original checkpoint", hint="Name the right original.")
        change = value - before[name].detach().float().cpu()
        if not bool(change.any()):
            continue
        if change.dim() != 2 or min(change.shape) <= rank:
            tensors[name + _WHOLE] = change
            continue
        left, scale, right = torch.linalg.svd(change, full_matrices=False)
        root = scale[:rank].sqrt()
        tensors[name + _LEFT], tensors[name + _RIGHT] = left[:, :rank] * root, root[:, None] * right[:rank]
        worst = max(worst, float(scale[rank:].norm() / scale.norm()))
    metadata = {
        "format": FORMAT,
        "base": base,
        "layers": json.dumps([layer.as_dict() for layer in layers_of(student.config)]),
        "training": json.dumps([one.model_dump(mode="json") for one in training]),
    }
    with replacing(file) as temporary:
        save_file({name: x.half().contiguous() for name, x in tensors.items()}, temporary, metadata)
    return worst


def read_adapter(file: Path) -> Adapter:
    """Read an adapter file.

    Raises:
        CheckpointError: when it is missing, damaged, or something else.
    """
    try:
        with safe_open(file, "pt") as opened:
            metadata: dict[str, Any] = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: cannot read: {error}", hint="Name an adapter file.") from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{file}: not an adapter of this version", hint="Make one with `lineahead adapter`."
        )
    try:
        return Adapter(
            base=metadata["base"],
            layers=[LinearLayer.from_dict(one) for one in json.loads(metadata["layers"])],
            training=tuple(Training.model_validate(one) for one in json.loads(metadata["training"])),
            tensors=tensors,
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, LineaheadError):
            raise
        raise CheckpointError(f"{file}: damaged header: {error}", hint="Copy the file again.") from error


def apply_adapter(model: PreTrainedModel, adapter: Adapter) -> None:
    """Put an adapter's values into a model that was linearized with its layers, in the model's own precision.

    Raises:
        CheckpointError: when the model is not of the adapter's kind; nothing is changed then.
    """
    if layers_of(model.config) != adapter.layers:
        raise CheckpointError(
            f"the adapter was made for other layers or settings than {type(model).__name__} has",
            hint=f"Use it with {adapter.base}.",
        )
    parameters = tensors_of(model)
    values: dict[str, Tensor] = {}
    for key, tensor in adapter.tensors.items():
        name = key.removesuffix(_LEFT).removesuffix(_RIGHT).removesuffix(_WHOLE)
        if name not in parameters:
            raise CheckpointError(f"{name}: the model has no such parameter", hint=f"Use {adapter.base}.")
        if key.endswith(_RIGHT):
            continue
        change = tensor.float()
        if key.endswith(_LEFT):
            change = change @ adapter.tensors[name + _RIGHT].float()
        if change.shape != parameters[name].shape:
            raise CheckpointError(
                f"{name}: {tuple(change.shape)} in the adapter, {tuple(parameters[name].shape)} in the model",
                hint=f"Use it with {adapter.base}.",
            )
        values[name] = change if is_new(name) else parameters[name].detach().float().cpu() + change
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)
