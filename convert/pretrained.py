"""Trained parts that come with the package: an adapter, and draft heads that belong to it."""

import shutil
from pathlib import Path

from lineahead.recipes.files import replacing
from lineahead.recipes.load import shipped_pretrained
from lineahead.recipes.manifest import Draft, Manifest, read_manifest, write_manifest

ADAPTER_FILE, HEADS_FOLDER, HEADS_RECORD = "adapter.safetensors", "draft", "draft.json"


def pretrained_adapter(name: str) -> Path:
    """The adapter file of shipped parts.

    Raises:
        RecipeError: when the package has no parts of that name.
    """
    return shipped_pretrained(name) / ADAPTER_FILE


def install_heads(name: str, artifact: Path) -> Manifest:
    """Copy shipped draft heads into an artifact that was made with the shipped adapter of the same name.

    Raises:
        RecipeError: when the package has no parts of that name.
        StorageError: when they cannot be written.
    """
    folder, manifest = shipped_pretrained(name), read_manifest(artifact)
    if not (folder / HEADS_RECORD).is_file():
        return manifest
    with replacing(artifact / HEADS_FOLDER) as temporary:
        shutil.copytree(folder / HEADS_FOLDER, temporary)
    record = Draft.model_validate_json((folder / HEADS_RECORD).read_text(encoding="utf-8"))
    manifest = manifest.model_copy(update={"drafts": (record,)})
    write_manifest(artifact, manifest)
    return manifest
