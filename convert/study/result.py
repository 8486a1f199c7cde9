"""What a cell gave, as one JSON file; the tables and plots are made from these files alone."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from lineahead.convert.study.grid import Cell
from lineahead.errors import InputError
from lineahead.recipes.files import write_text

FOLDER = "cells"
POINTS = 120


class Result(BaseModel):
    """One cell's outcome.

    Attributes:
        cell: the cell's name.
        digest: of everything that decided it.
        status: ``done``; ``refused``: the method cannot serve the model, `reason` says why; ``failed``:
            training or evaluation broke off.
        reason: why there are no figures.
        figures: perplexity by text, or ``accuracy`` and ``majority`` in percent.
        loss: mean over the last tenth of the last stage.
        curve: (tokens or texts seen, mean loss since the point before) of the last stage, at most 120 points.
        steps: optimiser steps.
        parameters: of the model.
        seconds: of training.
        tokens_per_s: of the last stage, median over its steps; None for classifiers and without training.
        device: what trained, by name.
        precision: of the weights while training.
        versions: of lineahead, torch, transformers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cell: str
    digest: str
    status: Literal["done", "refused", "failed"]
    reason: str = ""
    figures: dict[str, float] = {}
    loss: float | None = None
    curve: tuple[tuple[float, float], ...] = ()
    steps: int = 0
    parameters: int = 0
    seconds: float = 0.0
    tokens_per_s: int | None = None
    device: str = ""
    precision: str = ""
    versions: dict[str, str] = {}


def save_result(folder: Path, result: Result) -> None:
    """Write a result into a study's folder.

    Raises:
        StorageError: when it cannot be written.
    """
    write_text(folder / FOLDER / f"{result.cell}.json", result.model_dump_json(indent=1) + "\n")


def load_result(folder: Path, cell: Cell) -> Result | None:
    """The result of `cell` in a study's folder; None when there is none, or it was another recipe's.

    Raises:
        InputError: when its file is damaged.
    """
    path = folder / FOLDER / f"{cell.name}.json"
    if not path.is_file():
        return None
    try:
        found = Result.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError) as error:
        raise InputError(f"{path}: damaged: {error}", hint="Delete the file; the cell runs again.") from error
    return found if found.digest == cell.digest else None


def load_results(folder: Path, wanted: Iterable[Cell]) -> dict[str, Result]:
    """The results there are, by cell name."""
    found = {cell.name: load_result(folder, cell) for cell in wanted}
    return {name: result for name, result in found.items() if result is not None}


def thinned(points: list[tuple[float, float]], count: int = POINTS) -> tuple[tuple[float, float], ...]:
    """At most `count` points: the last place and the mean value of equal groups."""
    width = max(1, -(-len(points) // count))
    groups = [points[start : start + width] for start in range(0, len(points), width)]
    return tuple((group[-1][0], sum(value for _, value in group) / len(group)) for group in groups)
