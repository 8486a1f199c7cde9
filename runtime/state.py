"""Saved decoding states: a safetensors file whose header says which model and format it belongs to."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lineahead.errors import ArtifactError, StorageError

FORMAT = "lineahead-state"
VERSION = "1"
Tensors = dict[str, npt.NDArray[np.generic]]


def digest(tensors: Tensors, tokens: str) -> str:
    """SHA-256 over names, types, shapes and bytes of the tensors and over the token text."""
    total = hashlib.sha256(tokens.encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        total.update(f"{name} {array.dtype} {array.shape}".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def save(path: Path, tensors: Tensors, *, identity: str, tokens: Sequence[Sequence[int]] = ()) -> None:
    """Write `tensors` with a versioned, hashed header; the file appears whole or not at all.

    Args:
        path: file to write.
        tensors: state tensors by their ``past.`` names.
        identity: hash of the model they belong to.
        tokens: committed tokens of each row.

    Raises:
        StorageError: when the file cannot be written.
    """
    text = json.dumps([list(map(int, row)) for row in tokens])
    header = {
        "format": FORMAT,
        "version": VERSION,
        "model": identity,
        "tokens": text,
        "sha256": digest(tensors, text),
    }
    part = path.with_name(path.name + ".part")
    try:
        save_file(
            {name: np.ascontiguousarray(array) for name, array in tensors.items()}, part, metadata=header
        )
        part.replace(path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise StorageError(
            f"{path}: cannot write the state: {error}", hint="Free some space or choose another path."
        ) from error


def load(path: Path, *, identity: str) -> tuple[Tensors, list[list[int]]]:
    """Read a saved state and check that it is whole and belongs to the model `identity`.

    Returns:
        the tensors and the tokens of each row.

    Raises:
        ArtifactError: when the file is missing, damaged, of another version or of another model.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            header = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError, ValueError) as error:
        raise ArtifactError(
            f"{path}: not a readable state file: {error}", hint="Save the state again."
        ) from error
    if (header.get("format"), header.get("version")) != (FORMAT, VERSION):
        raise ArtifactError(
            f"{path}: format {header.get('format')!r} {header.get('version')!r}, not {FORMAT!r} {VERSION!r}",
            hint="Save the state again with this version of lineahead.",
        )
    text = header.get("tokens", "[]")
    if header.get("sha256") != digest(tensors, text):
        raise ArtifactError(
            f"{path}: contents do not match their SHA-256", hint="The file is damaged; save the state again."
        )
    if header.get("model") != identity:
        raise ArtifactError(
            f"{path}: belongs to model {header.get('model', '')[:12]!r}, this is {identity[:12]!r}",
            hint="Load the state into the artifact that it was saved from.",
        )
    return tensors, _tokens(path, text)


def same_layout(found: Mapping[str, object], wanted: Mapping[str, object]) -> None:
    """Refuse tensors that are not laid out as a session's.

    Args:
        found: name to shape (and type) of what was saved.
        wanted: the same of what the session holds.

    Raises:
        ArtifactError: naming the first tensor that differs.
    """
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise ArtifactError(
                f"saved state: {name} is {found.get(name)}, this model has {wanted.get(name)}",
                hint="Load the state into the artifact that it was saved from.",
            )


def _tokens(path: Path, text: str) -> list[list[int]]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(
        isinstance(row, list) and all(type(token) is int for token in row) for row in found
    ):
        raise ArtifactError(f"{path}: its tokens are not lists of numbers", hint="Save the state again.")
    return found
