"""Run a study: cells one after another, until they are done or the time is up.

What is done is skipped; what was refused or failed is tried again, since another version may serve it.
"""

import time
from collections.abc import Callable, Sequence

from lineahead.convert.study.cell import Job, run_cell
from lineahead.convert.study.grid import Cell, cells
from lineahead.convert.study.result import Result, load_result, save_result
from lineahead.errors import InputError

Announce = Callable[[str], None]


def run_study(
    job: Job,
    *,
    only: Sequence[str] = (),
    seconds: float | None = None,
    shard: str = "0/1",
    announce: Announce = lambda message: None,
) -> list[Result]:
    """Run the cells that are not done yet, each kept in a file of its own as soon as it is there.

    Cells that differ in their name alone are trained once.

    Args:
        job: the study, its folder, where to train.
        only: patterns of cell names; all when empty.
        seconds: begin no cell after this time; the next run goes on.
        shard: ``I/N``: run every N-th cell from the I-th, so that N processes share a device or several.
        announce: told what begins and what came out.

    Returns:
        The results of this run's cells, older ones included.

    Raises:
        InputError: when a pattern or the shard names nothing.
        InterruptedTrainingError: after a signal; the cell's progress is saved.
    """
    part, _, parts = shard.partition("/")
    if not (part.isdigit() and parts.isdigit() and int(part) < int(parts)):
        raise InputError(f"shard {shard!r} is not I/N", hint="Count from 0: 0/2 and 1/2.")
    every = cells(job.study, only)
    twins: dict[str, list[Cell]] = {}
    for cell in every:
        twins.setdefault(cell.digest, []).append(cell)
    wanted = [same[0] for same in twins.values()][int(part) :: int(parts)]
    begin = time.monotonic()
    found = []
    for number, cell in enumerate(wanted, 1):
        result, label = load_result(job.folder, cell), f"{number}/{len(wanted)} {cell.name}"
        if result is None or result.status != "done":
            if seconds is not None and time.monotonic() - begin > seconds:
                announce(f"{label}: time is up; run again to go on")
                break
            announce(label)
            result = run_cell(cell, job)
            save_result(job.folder, result)
            announce(f"{label}: {outcome(result)}")
        found += [_kept(job, twin, result) for twin in twins[cell.digest]]
    return found


def _kept(job: Job, cell: Cell, result: Result) -> Result:
    """The result of a cell that nothing tells from the one that ran, kept under its own name too."""
    same = result.model_copy(update={"cell": cell.name})
    if load_result(job.folder, cell) != same:
        save_result(job.folder, same)
    return same


def outcome(result: Result) -> str:
    """A result in one line."""
    if result.status != "done":
        return f"{result.status}: {result.reason}"
    figures = ", ".join(f"{name} {value:.4g}" for name, value in result.figures.items())
    return f"{figures} ({result.seconds:.0f} s)"
