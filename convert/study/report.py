"""The report of a study: ``table.md``, ``table.csv``, ``table.json`` and the plots, from the cells' files."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lineahead.convert.study.grid import cells
from lineahead.convert.study.plots import write_plots
from lineahead.convert.study.result import load_results
from lineahead.convert.study.table import as_csv, as_json, as_markdown, tables
from lineahead.errors import InputError
from lineahead.recipes.files import write_text
from lineahead.recipes.study.schema import Study


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was written, and the results in short.

    Attributes:
        files: the tables and plots.
        rows: a line per cell: its name, status, figures, reason.
        unfinished: cells without a result.
    """

    files: tuple[Path, ...]
    rows: list[dict[str, Any]]
    unfinished: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "files": [str(path) for path in self.files],
            "unfinished": list(self.unfinished),
            "cells": self.rows,
        }


def drawable() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def write_report(study: Study, folder: Path, *, command: str, plots: bool = True) -> Report:
    """Write the tables and plots of all results in a study's folder.

    Args:
        study: the study; results of other settings are left out.
        folder: its folder.
        command: what made the results.
        plots: whether to draw; needs matplotlib.

    Raises:
        InputError: when there are no results, or no matplotlib.
        StorageError: when a file cannot be written.
    """
    grid = cells(study)
    results = load_results(folder, grid)
    if not results:
        raise InputError(
            f"{folder}: no results of study {study.name!r}", hint="Run the study first, with the same recipe."
        )
    found = tables(study, grid, results)
    pages = {
        "table.md": as_markdown(study, found, results, command),
        "table.csv": as_csv(grid, results),
        "table.json": as_json(study, found, results, command),
    }
    for name, text in pages.items():
        write_text(folder / name, text)
    drawn = write_plots(folder, grid, results, found) if plots else []
    return Report(
        files=(*(folder / name for name in pages), *drawn),
        rows=[
            {"cell": name, "status": one.status, **one.figures, "reason": one.reason}
            for name, one in results.items()
        ],
        unfinished=tuple(cell.name for cell in grid if cell.name not in results),
    )
