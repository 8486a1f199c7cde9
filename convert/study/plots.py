"""A study's plots: loss curves, and bars of perplexity or accuracy with the paper's values as marks."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lineahead.convert.study.grid import Cell
from lineahead.convert.study.result import Result
from lineahead.convert.study.table import Entry, Table
from lineahead.errors import InputError, needs_package
from lineahead.recipes.files import replacing

PLAIN, AUGMENTED = "#9aa7b8", "#1f6f8b"
_WIDTH, _HEIGHT, _DPI = 7.5, 4.2, 130


def write_plots(
    folder: Path, grid: Sequence[Cell], results: Mapping[str, Result], found: Sequence[Table]
) -> list[Path]:
    """Write one PNG per table, and one with the loss curves per model and task.

    Raises:
        InputError: without matplotlib.
        StorageError: when a file cannot be written.
    """
    with needs_package("plots need matplotlib", 'Run `pip install "lineahead[study]"`.', InputError):
        from matplotlib.figure import Figure
    written = []
    for model, task in dict.fromkeys((cell.model, cell.task) for cell in grid):
        mine = [cell for cell in grid if (cell.model, cell.task) == (model, task)]
        curves = [(cell, results[cell.name].curve) for cell in mine if cell.name in results]
        if any(curve for _, curve in curves):
            figure = Figure(figsize=(_WIDTH, _HEIGHT), dpi=_DPI, layout="constrained")
            _draw_curves(figure, curves)
            written.append(_save(figure, folder / f"loss-{model}-{task}.png"))
    for table in found:
        if any(_number(entry) is not None for row in table.rows for entry in (row.plain, row.augmented)):
            figure = Figure(figsize=(_WIDTH, _HEIGHT), dpi=_DPI, layout="constrained")
            _draw_bars(figure, table)
            written.append(
                _save(
                    figure, folder / f"bars-{table.model}-{table.task}-{table.figure.replace(' ', '-')}.png"
                )
            )
    return written


def _save(figure: Any, path: Path) -> Path:
    held = io.BytesIO()
    figure.savefig(held, format="png", metadata={"Software": None})
    with replacing(path) as temporary:
        temporary.write_bytes(held.getvalue())
    return path


def _draw_curves(figure: Any, curves: Sequence[tuple[Cell, Sequence[tuple[float, float]]]]) -> None:
    """A colour per method; augmented forms solid, plain ones dashed; later losses fill the picture."""
    axes = figure.add_subplot()
    colours = {method: f"C{i}" for i, method in enumerate(dict.fromkeys(cell.method for cell, _ in curves))}
    late: list[float] = []
    for cell, curve in curves:
        if not curve:
            continue
        solid = cell.augmented or cell.settings is None
        name = f"augmented {cell.method}" if cell.augmented else cell.method
        colour = "black" if cell.settings is None else colours[cell.method]
        axes.plot(*zip(*curve, strict=True), "-" if solid else "--", color=colour, lw=1.2, label=name)
        late += [loss for _, loss in curve[len(curve) // 8 :]]
    axes.set_ylim(min(late) - 0.05 * (max(late) - min(late)), max(late) + 0.02)
    axes.set_xlabel("tokens or texts seen")
    axes.set_ylabel("training loss")
    axes.set_title(f"{curves[0][0].model}, {curves[0][0].task}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=6, ncols=2)


def _draw_bars(figure: Any, table: Table) -> None:
    """Plain and augmented bars of every method; the paper's values are marks on a second scale."""
    axes = figure.add_subplot()
    rows = [row for row in table.rows if _number(row.plain) is not None or _number(row.augmented) is not None]
    for shift, colour, name in ((-0.2, PLAIN, "plain"), (0.2, AUGMENTED, "augmented")):
        bars = [(i + shift, getattr(row, name)) for i, row in enumerate(rows)]
        shown = [(place, _number(entry)) for place, entry in bars if _number(entry) is not None]
        axes.bar([p for p, _ in shown], [value for _, value in shown], 0.38, color=colour, label=name)
    values = [v for row in rows for e in (row.plain, row.augmented) if (v := _number(e)) is not None]
    if not table.lower_is_better:
        axes.set_ylim(max(0.0, min(values) - 5), 100)
    axes.set_xticks(range(len(rows)), [row.method for row in rows], rotation=35, ha="right", fontsize=8)
    axes.set_ylabel(table.unit)
    axes.set_title(f"{table.model}: {table.figure if table.lower_is_better else table.task}")
    axes.legend(fontsize=8, loc="upper left")
    marks = [
        (i + shift, value)
        for i, row in enumerate(rows)
        for shift, value in ((-0.2, row.paper_plain), (0.2, row.paper_augmented))
        if value is not None
    ]
    if marks:
        other = axes.twinx()
        other.plot(*zip(*marks, strict=True), "kx", ms=5, label="paper")
        other.set_ylabel("paper", fontsize=8)
        other.legend(fontsize=8, loc="upper right")


def _number(entry: Entry | None) -> float | None:
    return None if entry is None else entry.value
