"""The ports of a draft engine, and the file beside it. Standard library and NumPy only."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from lineahead.errors import ArtifactError

HIDDEN, IDS, GUESS, SCORES = "hidden_states", "input_ids", "guess", "scores"


def names_path(engine: Path) -> Path:
    """The file that names the tokens that an engine's scores are of."""
    return engine.with_name(f"{engine.stem}.tokens.npy")


def write_names(engine: Path, names: npt.NDArray[np.int32]) -> None:
    """Write them."""
    with names_path(engine).open("wb") as file:
        np.save(file, names)


def read_names(engine: Path, count: int, vocabulary: int) -> npt.NDArray[np.int32]:
    """Read them.

    Args:
        engine: the engine's file.
        count: scores of the engine.
        vocabulary: of the verifier.

    Raises:
        ArtifactError: when they are missing or not of this engine.
    """
    path, hint = names_path(engine), "Build the engine again: `lineahead export tensorrt ARTIFACT`."
    try:
        found: npt.NDArray[np.int32] = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: cannot be read: {error}", hint=hint) from error
    if found.dtype != np.int32 or found.shape != (count,) or found.min() < 0 or found.max() >= vocabulary:
        raise ArtifactError(f"{path}: not the {count} tokens of {engine.name}", hint=hint)
    return found
