"""``lineahead conformance``."""

import sys
from pathlib import Path
from typing import Any

import click

from lineahead.recipes.console import json_option, show

FORM = click.Choice(("reference", "training", "generate", "step", "onnxruntime"))


@click.command()
@click.argument("artifact", required=False, type=click.Path(path_type=Path))
@click.option("--family", "families", multiple=True, help="Model type of transformers (repeatable).")
@click.option("--preset", "presets", multiple=True, help="Method (repeatable).")
@click.option("--form", "forms", multiple=True, type=FORM, help="Implementation (repeatable).")
@click.option("--workers", default=2, help="Processes at a time.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Write the table here; its cells, beside it, are reused.",
)
@click.option("--trust-remote-code", is_flag=True, help="Run the Python code that comes with ARTIFACT.")
@json_option
def conformance(
    artifact: Path | None,
    families: tuple[str, ...],
    presets: tuple[str, ...],
    forms: tuple[Any, ...],
    workers: int,
    output: Path | None,
    trust_remote_code: bool,
    as_json: bool,
) -> None:
    """Compare every form of every method on every family with the per-token reference, on tiny models.

    With ARTIFACT, compare the forms of that model, whoever made it; nothing is trained.
    The exit status is 1 when a cell fails.
    """
    from lineahead.convert.conformance.artifact import measure_artifact
    from lineahead.convert.conformance.report import measure_all, summary
    from lineahead.convert.training.progress import stderr_progress

    progress = stderr_progress("subjects")
    if artifact is None:
        found = measure_all(families, presets, forms, workers=workers, output=output, progress=progress)
    else:
        found = measure_artifact(artifact, forms=forms, trust_remote_code=trust_remote_code)
    report = summary(found)
    show(report.as_dict() if as_json else report.rows, as_json)
    sys.exit(0 if report.conforms else 1)


COMMANDS: tuple[click.Command, ...] = (conformance,)
