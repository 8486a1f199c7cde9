"""``lineahead study``."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import click

from lineahead.recipes.console import DEVICE, json_option, note, show


@click.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY.SUB=VALUE]...")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder [default: studies/<name>].")
@click.option("--only", multiple=True, metavar="PATTERN", help="Run these cells, e.g. 'gpt2-*' (repeatable).")
@click.option("--seconds", type=float, help="Begin no cell after this time; run again to go on.")
@click.option("--shard", default="0/1", metavar="I/N", help="Run every N-th cell: a process for each share.")
@click.option("--device", type=DEVICE, help="Where to train [default: the GPU, if any].")
@click.option("--report", is_flag=True, help="Run nothing; write tables and plots of the results there are.")
@json_option
def study(
    recipe: str,
    overrides: Sequence[str],
    output: Path | None,
    only: tuple[str, ...],
    seconds: float | None,
    shard: str,
    device: str | None,
    report: bool,
    as_json: bool,
) -> None:
    """Train and judge a grid of methods, augmented and not, on several models; write tables and plots.

    RECIPE is a YAML file or a shipped study's name. Finished cells are skipped, so an interrupted study goes
    on where it was when run again.
    """
    from lineahead.convert.study.cell import Job
    from lineahead.convert.study.report import drawable, write_report
    from lineahead.convert.study.run import run_study
    from lineahead.convert.training.progress import stderr_progress
    from lineahead.recipes.study.load import load_study

    wanted = load_study(recipe, overrides)
    folder = output or Path("studies") / wanted.name
    if not report:
        job = Job(study=wanted, folder=folder, device=device, progress=stderr_progress())
        run_study(job, only=only, seconds=seconds, shard=shard, announce=note)
    if not drawable():
        note('no plots: they need matplotlib (pip install "lineahead[study]")')
    command = shlex.join(["lineahead", "study", recipe, *overrides])
    found = write_report(wanted, folder, command=command, plots=drawable())
    show(found.as_dict() if as_json else found.rows, as_json)


COMMANDS: tuple[click.Command, ...] = (study,)
