"""A conformance run from grid to page, resumable, and its result in short."""

import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lineahead.convert.conformance.cells import FORMS, Cell, Form
from lineahead.convert.conformance.run import keep_cells, load_cells, run_grid, subjects, versions
from lineahead.convert.conformance.table import as_markdown, counts
from lineahead.convert.training.progress import Progress, Silent
from lineahead.recipes.files import holding, write_text

SAVE_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A run's result.

    Attributes:
        cells: all of them.
        rows: for people: what failed, or the number of cells of each status.
    """

    cells: list[Cell]
    rows: list[dict[str, Any]]

    @property
    def conforms(self) -> bool:
        """Whether no cell fails and some agree."""
        number = counts(self.cells)
        return not number["failed"] and bool(number["ok"])

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "conforms": self.conforms,
            **counts(self.cells),
            "cells": [asdict(cell) for cell in self.cells],
        }


def summary(cells: list[Cell]) -> Summary:
    """A run's cells in short: failures if there are any, else a line per subject."""
    failed = [asdict(cell) for cell in cells if cell.status == "failed"]
    rows = []
    for family, kind, preset in dict.fromkeys((cell.family, cell.kind, cell.preset) for cell in cells):
        mine = [cell for cell in cells if (cell.family, cell.kind, cell.preset) == (family, kind, preset)]
        errors = [cell.error for cell in mine if cell.error is not None]
        refusals = {cell.reason for cell in mine if cell.status == "refused"}
        rows.append(
            {
                "family": family,
                "kind": kind,
                "preset": preset,
                **{name: number for name, number in counts(mine).items() if name != "absent"},
                "largest error": max(errors, default=None),
                "refusal": min(refusals, default=None),
            }
        )
    return Summary(cells=cells, rows=failed or rows)


def measure_all(
    families: Sequence[str] = (),
    presets: Sequence[str] = (),
    forms: Sequence[Form] = (),
    *,
    workers: int = 1,
    output: Path | None = None,
    progress: Progress | None = None,
) -> list[Cell]:
    """Measure a grid of families and methods, and write its page.

    Args:
        families: model types; all when empty.
        presets: methods; all when empty.
        forms: forms; all when empty.
        workers: processes at a time.
        output: page of Markdown; the cells are kept in ``.json`` beside it, those that another run of the
            same code and libraries has measured are reused, and the page shows them all. Several runs may
            write to one page at a time.
        progress: where to report.

    Raises:
        InputError: when a family or preset is unknown.
        StorageError: when a file cannot be written.
    """
    grid = subjects(families, presets, forms)
    table = output.with_suffix(".json") if output is not None else None
    kept = load_cells(table) if table is not None else []
    have = {(cell.family, cell.kind, cell.preset, cell.form) for cell in kept}
    missing = [
        replace(one, forms=tuple(f for f in one.forms if (one.family, one.kind, one.preset, f) not in have))
        for one in grid
    ]
    todo = [one for one in missing if one.forms]
    report = progress or Silent()
    report.start("conformance", len(todo))
    saved = time.monotonic()
    try:
        for cells in run_grid(todo, workers=workers):
            kept += cells
            report.advance(1, {name: float(number) for name, number in counts(kept).items()})
            if table is not None and time.monotonic() - saved > SAVE_SECONDS:
                kept = keep_cells(table, kept)
                saved = time.monotonic()
    finally:
        report.finish()
        if table is not None and kept:
            kept = keep_cells(table, kept)
    if output is not None:
        _write_page(output)
    mine = {(one.family, one.kind, one.preset, form) for one in grid for form in one.forms}
    return [cell for cell in _ordered(kept) if (cell.family, cell.kind, cell.preset, cell.form) in mine]


def _write_page(output: Path) -> None:
    """The page of all cells beside it, those that another run has kept meanwhile included."""
    with holding(output):
        kept = _ordered(load_cells(output.with_suffix(".json")))
        write_text(output, as_markdown(kept, versions(), commands(kept)))


def _ordered(cells: Sequence[Cell]) -> list[Cell]:
    order = {(one.family, one.kind, one.preset): place for place, one in enumerate(subjects())}
    return sorted(
        cells, key=lambda cell: (order[cell.family, cell.kind, cell.preset], list(FORMS).index(cell.form))
    )


def commands(cells: Sequence[Cell]) -> list[str]:
    """The commands that measure these cells and no others."""
    forms: dict[tuple[str, str], dict[str, None]] = {}
    for cell in cells:
        forms.setdefault((cell.family, cell.preset), {})[cell.form] = None
    presets: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (family, preset), ran in forms.items():
        presets.setdefault((family, tuple(ran)), []).append(preset)
    families: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for (family, run), named in presets.items():
        families.setdefault((tuple(named), run), []).append(family)
    return [_command(names, named, run) for (named, run), names in families.items()]


def _command(families: Sequence[str], presets: Sequence[str], forms: Sequence[str]) -> str:
    every, parts = subjects(), ["lineahead", "conformance"]
    for option, names, known in (
        ("--family", families, {one.family for one in every}),
        ("--preset", presets, {one.preset for one in every}),
        ("--form", forms, set(FORMS)),
    ):
        if set(names) != known:
            parts += [part for one in names for part in (option, one)]
    return shlex.join(parts)
