"""A study's results as tables: one per model and text or task, the augmented form beside the plain one."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import Any

from lineahead.convert.study.grid import Cell
from lineahead.convert.study.paper import Anchor, anchor
from lineahead.convert.study.result import Result
from lineahead.recipes.study.schema import LabelTask, Study

MAJORITY = "majority"
LOWER, HIGHER = "lower is better", "higher is better"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A method's figure in one form.

    Attributes:
        value: the mean over seeds; None without a result.
        spread: standard deviation over seeds; None for fewer than two.
        note: ``refused``, ``failed`` or ``not run`` where there is no value.
        reason: why.
    """

    value: float | None = None
    spread: float | None = None
    note: str = ""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method, plain and augmented, ours and the paper's; None where a form does not exist."""

    method: str
    plain: Entry | None
    augmented: Entry | None
    paper_plain: float | None
    paper_augmented: float | None


@dataclass(frozen=True, kw_only=True)
class Table:
    """All methods of one model on one text or task.

    Attributes:
        model: the study's model.
        task: the study's task.
        figure: name of the text, or ``accuracy``.
        unit: what the figures are and which way is better.
        lower_is_better: whether it is.
        paper: where the paper's columns come from; empty without any.
        majority: accuracy of always answering the commonest class; None for perplexities.
        rows: the methods.
    """

    model: str
    task: str
    figure: str
    unit: str
    lower_is_better: bool
    paper: str
    majority: float | None
    rows: tuple[Row, ...]


def tables(study: Study, grid: Sequence[Cell], results: Mapping[str, Result]) -> list[Table]:
    """The tables of a study, in its order; cells without results appear as not run."""
    found = []
    for model, task in dict.fromkeys((cell.model, cell.task) for cell in grid):
        mine = [cell for cell in grid if (cell.model, cell.task) == (model, task)]
        purpose = study.tasks[task]
        for figure in ("accuracy",) if isinstance(purpose, LabelTask) else purpose.figures:
            found.append(_table(study, model, task, figure, mine, results))
    return found


def _table(
    study: Study, model: str, task: str, figure: str, grid: list[Cell], results: Mapping[str, Result]
) -> Table:
    labelled = isinstance(study.tasks[task], LabelTask)
    paper = anchor(study.models[model].family, task if labelled else figure)
    mine = [results[cell.name].figures.get(MAJORITY) for cell in grid if cell.name in results]
    return Table(
        model=model,
        task=task,
        figure=figure,
        unit=f"accuracy in percent, {HIGHER}" if labelled else f"perplexity, {LOWER}",
        lower_is_better=not labelled,
        paper=paper.source if paper else "",
        majority=next((one for one in mine if one is not None), None),
        rows=tuple(
            _row(method, figure, [cell for cell in grid if cell.method == method], results, paper)
            for method in dict.fromkeys(cell.method for cell in grid)
        ),
    )


def _row(
    method: str, figure: str, grid: list[Cell], results: Mapping[str, Result], paper: Anchor | None
) -> Row:
    forms = {
        augmented: _entry(figure, [results.get(cell.name) for cell in grid if cell.augmented == augmented])
        for augmented in (False, True)
    }
    return Row(
        method=method,
        plain=forms[False],
        augmented=forms[True],
        paper_plain=paper.plain.get(method) if paper else None,
        paper_augmented=paper.augmented.get(method) if paper else None,
    )


def _entry(figure: str, found: list[Result | None]) -> Entry | None:
    """The mean over a form's cells, one per seed."""
    if not found:
        return None
    values = [one.figures[figure] for one in found if one is not None and figure in one.figures]
    if values:
        return Entry(value=mean(values), spread=stdev(values) if len(values) > 1 else None)
    first = found[0]
    return Entry(note="not run") if first is None else Entry(note=first.status, reason=first.reason)


def as_markdown(study: Study, found: Sequence[Table], results: Mapping[str, Result], command: str) -> str:
    """The tables and what made them, as one page."""
    lines = [f"# Study: {study.name}", "", study.description, "", *_facts(study, results, command), ""]
    for table in found:
        lines += [f"## {table.model}, {table.task}: {table.figure}", "", _heading(table), ""]
        lines += [_line("method", "plain", "augmented", "change", "paper, plain", "paper, augmented")]
        lines += [_line(*["---"] * 6)]
        lines += [_line(row.method, *_cells(table, row)) for row in table.rows]
        lines += ["", *_reasons(table), ""]
    return "\n".join(lines).rstrip() + "\n"


def _facts(study: Study, results: Mapping[str, Result], command: str) -> list[str]:
    done = [one for one in results.values() if one.status == "done"]
    machines = sorted({f"{one.device} ({one.precision})" for one in done})
    versions = sorted({f"{name} {version}" for one in done for name, version in one.versions.items()})
    seeds = sorted({seed for row in study.grid for seed in row.seeds})
    total = sum(one.seconds for one in done)
    return [
        f"`{command}`; seeds {', '.join(map(str, seeds))}; {', '.join(machines) or 'nothing run yet'}; "
        f"{', '.join(versions)}; {len(done)} cells trained in {total:.0f} s.",
        "",
        "Within a table all methods have the same data, order, initial weights and budget. The paper's "
        "models are pretrained, larger, and were trained for longer: compare the order of the methods.",
    ]


def _heading(table: Table) -> str:
    parts = [table.unit[0].upper() + table.unit[1:]]
    if table.majority is not None:
        parts.append(f"always the commonest class: {table.majority:.2f}")
    if table.paper:
        parts.append(f"the paper's: {table.paper}")
    return "; ".join(parts) + "."


def _cells(table: Table, row: Row) -> list[str]:
    change = ""
    if row.plain and row.augmented and row.plain.value is not None and row.augmented.value is not None:
        difference = row.augmented.value - row.plain.value
        better = (difference < 0) == table.lower_is_better and difference != 0
        share = f"{difference / row.plain.value:+.1%}" if table.lower_is_better else f"{difference:+.2f}"
        change = f"**{share}**" if better else share
    return [
        _value(row.plain),
        _value(row.augmented),
        change,
        _paper(row.paper_plain),
        _paper(row.paper_augmented),
    ]


def _value(entry: Entry | None) -> str:
    if entry is None:
        return ""
    if entry.value is None:
        return entry.note
    return f"{entry.value:.2f}" + (f" ± {entry.spread:.2f}" if entry.spread is not None else "")


def _paper(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _reasons(table: Table) -> list[str]:
    """Every reason once, with the methods that it holds for."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in table.rows:
        for form, entry in ((row.method, row.plain), (f"augmented {row.method}", row.augmented)):
            if entry is not None and entry.reason:
                reasons.setdefault((entry.note, entry.reason), []).append(form)
    return [f"- {', '.join(names)}: {note}: {reason}" for (note, reason), names in reasons.items()]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def as_csv(grid: Sequence[Cell], results: Mapping[str, Result]) -> str:
    """One line per cell and figure."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            "model",
            "task",
            "method",
            "augmented",
            "seed",
            "status",
            "figure",
            "value",
            "loss",
            "steps",
            "seconds",
            "tokens_per_s",
        ]
    )
    for cell in grid:
        result = results.get(cell.name)
        facts = [cell.model, cell.task, cell.method, int(cell.augmented), cell.seed]
        if result is None:
            writer.writerow([*facts, "not run", "", "", "", "", "", ""])
            continue
        for figure, value in (result.figures or {"": float("nan")}).items():
            row = [
                *facts,
                result.status,
                figure,
                value if figure else None,
                result.loss,
                result.steps,
                result.seconds,
                result.tokens_per_s,
            ]
            writer.writerow(["" if one is None else one for one in row])
    return text.getvalue()


def as_json(study: Study, found: Sequence[Table], results: Mapping[str, Result], command: str) -> str:
    """Recipe, tables and every cell's result."""
    data: dict[str, Any] = {
        "command": command,
        "study": study.model_dump(mode="json"),
        "tables": [asdict(table) for table in found],
        "cells": [result.model_dump(mode="json", exclude={"curve"}) for result in results.values()],
    }
    return json.dumps(data, indent=1) + "\n"
