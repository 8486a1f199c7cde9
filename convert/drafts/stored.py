"""The ``draft/`` folder of an artifact: a config that names the kind, and weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lineahead.errors import ArtifactError
from lineahead.recipes.files import replacing, write_text

FOLDER, WEIGHTS, CONFIG = "draft", "model.safetensors", "config.json"
KIND = "model_type"


def save_draft(artifact: Path, kind: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Write ``draft/`` into an artifact, replacing what is there; returns the folder.

    Args:
        artifact: the artifact folder.
        kind: ``medusa`` or ``recurrent``.
        config: the draft's shape.
        tensors: its weights.

    Raises:
        StorageError: when it cannot be written.
    """
    folder = artifact / FOLDER
    with replacing(folder) as temporary:
        temporary.mkdir()
        save_file({name: x.detach().cpu().contiguous() for name, x in tensors.items()}, temporary / WEIGHTS)
        write_text(temporary / CONFIG, json.dumps({KIND: kind, **config}, indent=2) + "\n")
    return folder


def draft_kind(artifact: Path) -> str:
    """What ``draft/`` holds: ``medusa`` or ``recurrent``.

    Raises:
        ArtifactError: when there is none, or its config is damaged.
    """
    return str(_config(artifact / FOLDER)[KIND])


def read_draft(artifact: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config (without the kind) and weights.

    Raises:
        ArtifactError: when there is no draft, it is damaged, or of another kind.
    """
    folder = artifact / FOLDER
    data = _config(folder)
    found = data.pop(KIND)
    if found != kind:
        raise ArtifactError(
            f"{folder}: draft of kind {found!r}, expected {kind!r}", hint="Train it again: lineahead draft."
        )
    try:
        return data, load_file(folder / WEIGHTS)
    except FileNotFoundError as error:
        raise missing(folder) from error
    except (OSError, SafetensorError) as error:
        raise damaged(folder, error) from error


def _config(folder: Path) -> dict[str, Any]:
    try:
        data = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(data, dict) or KIND not in data:
            raise ValueError(f"no {KIND}")
    except FileNotFoundError as error:
        raise missing(folder) from error
    except (OSError, ValueError) as error:
        raise damaged(folder, error) from error
    return data


def missing(folder: Path) -> ArtifactError:
    """For an artifact without a draft."""
    return ArtifactError(f"{folder}: no draft heads", hint=f"Train some: lineahead draft {folder.parent}.")


def damaged(folder: Path, error: Exception) -> ArtifactError:
    """For a draft that cannot be read."""
    return ArtifactError(f"{folder}: damaged draft heads: {error}", hint="Train them again: lineahead draft.")
