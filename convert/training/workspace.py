"""The folder beside an artifact that holds a training run until it is finished: ``<artifact>.training``."""

import json
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

from lineahead.convert.training import checkpoint
from lineahead.errors import TrainingError
from lineahead.recipes.files import write_text
from lineahead.recipes.schema import Recipe

RUN, CHECKPOINT, TOKENS, METRICS, SAMPLES = "run.json", "checkpoint", "tokens.npz", "metrics.jsonl", "samples"


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """One run's folder.

    Attributes:
        folder: where it is.
        run: the run's name, recorded with every finished stage.
        recipe: digest of the recipe.
    """

    folder: Path
    run: str
    recipe: str

    @property
    def tokens(self) -> Path:
        """The training tokens."""
        return self.folder / TOKENS

    @property
    def metrics(self) -> Path:
        """The losses of every step."""
        return self.folder / METRICS

    @property
    def samples(self) -> Path:
        """The teacher's samples, batch by batch."""
        return self.folder / SAMPLES

    def finish(self) -> None:
        """Remove what only an unfinished run needs; the metrics stay."""
        for name in (CHECKPOINT, SAMPLES):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for name in (TOKENS, RUN):
            (self.folder / name).unlink(missing_ok=True)


def workspace_of(artifact: Path) -> Path:
    """The folder of an artifact's training run."""
    return artifact.with_name(artifact.name + ".training")


def open_workspace(artifact: Path, recipe: Recipe, *, resume: bool) -> Workspace:
    """Begin a run, or go on with an unfinished one.

    Args:
        artifact: the artifact folder.
        recipe: the recipe.
        resume: whether to go on; without an unfinished run this begins one.

    Raises:
        TrainingError: when an unfinished run would be lost, or is one of another recipe.
        StorageError: when the folder cannot be written.
    """
    folder, digest = workspace_of(artifact), checkpoint.digest(recipe.model_dump(mode="json"))
    path = folder / RUN
    if path.is_file():
        if not resume:
            raise TrainingError(
                f"{folder}: an unfinished training run",
                hint="Continue it with --resume, or delete that folder.",
            )
        return _unfinished(path, digest)
    made = Workspace(folder=folder, run=uuid.uuid4().hex[:12], recipe=digest)
    (folder / METRICS).unlink(missing_ok=True)
    write_text(path, json.dumps({"run": made.run, "recipe": made.recipe}) + "\n")
    return made


def _unfinished(path: Path, digest: str) -> Workspace:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        found = Workspace(folder=path.parent, run=str(data["run"]), recipe=str(data["recipe"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path}: damaged", hint=f"Delete {path.parent} to start over.") from error
    if found.recipe != digest:
        raise TrainingError(
            f"{path.parent}: the unfinished run has another recipe",
            hint="Resume with the same recipe and overrides, or delete that folder to start over.",
        )
    return found
