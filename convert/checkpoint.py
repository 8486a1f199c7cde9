"""Artifact folders in and out: the model, its tokenizer, the code that loads it, and the manifest."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lineahead.convert.fingerprint import file_hashes, fingerprint
from lineahead.errors import ArtifactError, CheckpointError, LineaheadError, StorageError
from lineahead.plugins.augmented_attention.huggingface.bundle import write_generate
from lineahead.plugins.augmented_attention.huggingface.layers import LinearLayer
from lineahead.plugins.augmented_attention.huggingface.modeling import (
    MODEL_TYPE,
    LineaheadConfig,
    LineaheadForCausalLM,
    layers_of,
)
from lineahead.recipes.files import replacing
from lineahead.recipes.manifest import FILE as MANIFEST_FILE
from lineahead.recipes.manifest import Manifest, write_manifest

CONFIG_FILE = "config.json"
_DISK_FULL = "os error 28"


def save_artifact(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    output: Path,
    *,
    layers: Sequence[LinearLayer] | None = None,
    manifest: Manifest | None = None,
) -> Path:
    """Write a linear model as an artifact folder: complete, or not at all.

    An artifact that is there already is replaced as a whole: draft heads and graphs belong to its weights.

    Args:
        model: a model that `linearize` or `load_artifact` returned, adapters merged.
        tokenizer: its tokenizer; None writes none, for tests.
        output: the folder.
        layers: what the caller believes is converted; checked against the model.
        manifest: written as ``lineahead.json``.

    Returns:
        `output`.

    Raises:
        ArtifactError: when `output` is something else than an artifact, or the model is not linear.
        StorageError: when the disk is full or the folder cannot be written.
    """
    if getattr(model.config, "model_type", None) != MODEL_TYPE:
        raise ArtifactError(f"{type(model).__name__} is not linear", hint="Call linearize() first.")
    if layers is not None and list(layers) != layers_of(model.config):
        raise ArtifactError(
            "the converted layers are not those of the model's config", hint="Call linearize() again."
        )
    output = Path(output)
    if output.exists() and not is_artifact(output) and not (output.is_dir() and not any(output.iterdir())):
        raise ArtifactError(
            f"{output} exists and is not an artifact folder", hint="Choose another output folder."
        )
    with replacing(output) as folder:
        folder.mkdir()
        try:
            model.save_pretrained(folder)
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
        except SafetensorError as error:
            reason = "no space left on the disk" if _DISK_FULL in str(error) else str(error)
            raise StorageError(
                f"{output}: {reason}", hint="Free some space and run the command again."
            ) from error
        if model.can_generate() and not model.config.is_encoder_decoder:
            write_generate(folder)
        if manifest is not None:
            found = {"files": file_hashes(folder), "logits": fingerprint(model)}
            write_manifest(folder, manifest.model_copy(update=found))
    return output


def load_artifact(
    path: Path, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load an artifact with this package's classes; its own code is not run.

    Args:
        path: the folder.
        dtype: of the weights; as saved when None. The operator's parameters stay float32 under 16-bit types.
        device: where to put it; the CPU when None.

    Returns:
        The model, in evaluation mode, and its tokenizer.

    Raises:
        ArtifactError: when the folder is not an artifact.
        CheckpointError: when a weight file is truncated, holds NaN or lacks a tensor; or without a tokenizer.
    """
    return load_model(path, dtype=dtype, device=device), load_tokenizer(path)


def load_model(
    path: Path, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> PreTrainedModel:
    """The model of an artifact; arguments and errors as in :func:`load_artifact`."""
    path = Path(path)
    read_config(path)
    check_weights(path)
    config = LineaheadConfig.from_pretrained(path)
    try:
        model = LineaheadForCausalLM.from_pretrained(
            path, config=config, dtype="auto" if dtype is None else dtype
        )
    except LineaheadError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        line = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{path}: cannot load: {line}", hint="Convert the checkpoint again.") from error
    model.eval()
    if device is not None:
        model.to(device)
    return cast(PreTrainedModel, model)


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder.

    Raises:
        CheckpointError: when there is none, or it is damaged.
    """
    try:
        return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(path, config=_base_config(path)))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise CheckpointError(
            f"{path}: no usable tokenizer (tokenizer.json)",
            hint="Copy the original checkpoint's tokenizer files there.",
        ) from error


def _base_config(path: Path) -> PreTrainedConfig | None:
    """For an artifact, a config of its base type: else transformers asks to run the artifact's code."""
    if not is_artifact(path):
        return None
    config = read_config(path)
    return CONFIG_MAPPING[config["base_model_type"]].from_dict({**config, "auto_map": None})


def read_config(path: Path) -> dict[str, Any]:
    """An artifact's ``config.json``.

    Raises:
        ArtifactError: when it is missing, damaged, or another model's.
    """
    file = Path(path) / CONFIG_FILE
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{file} is missing", hint="Name an artifact folder made by `lineahead convert`."
        ) from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{file} is damaged: {error}", hint="Convert the checkpoint again.") from error
    if not isinstance(config, dict) or config.get("model_type") != MODEL_TYPE:
        found = config.get("model_type") if isinstance(config, dict) else None
        raise ArtifactError(
            f"{file}: model_type is {found!r}, not {MODEL_TYPE!r}",
            hint="Convert it first: `lineahead convert`.",
        )
    return config


def is_artifact(path: Path) -> bool:
    """Whether a folder is an artifact, possibly a damaged one."""
    if (path / MANIFEST_FILE).is_file():
        return True
    try:
        read_config(path)
    except ArtifactError:
        return False
    return True


def check_weights(folder: Path) -> None:
    """Read every ``*.safetensors`` file of a folder once.

    Raises:
        CheckpointError: when there is none; naming a truncated file, or the file and tensor that hold NaN or
            infinity.
    """
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder}: no *.safetensors file", hint="Copy the checkpoint's weights there.")
    for file in files:
        try:
            with safe_open(file, "pt") as weights:
                for name in weights.keys():  # noqa: SIM118 (not a dict)
                    _check_tensor(file, name, weights.get_tensor(name))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file}: truncated or damaged ({error})", hint="Download or copy the file again."
            ) from error


def _check_tensor(file: Path, name: str, tensor: torch.Tensor) -> None:
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(
            f"{file}: tensor {name!r} holds NaN or infinity", hint="Use an undamaged checkpoint."
        )
