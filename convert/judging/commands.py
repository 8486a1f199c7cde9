"""The `eval` command: parse, library calls, print."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from lineahead.recipes.console import DEVICE, artifact_argument, chosen_recipe, counting, json_option, show


@click.command("eval")
@artifact_argument
@click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="[TEXT]...")
@click.option("--context", "contexts", multiple=True, type=int, help="Window length (may be repeated).")
@click.option("--tokens", type=int, help="Tokens read per file.")
@click.option("--stride", type=int, help="Between windows [default: the context].")
@click.option(
    "--agreement", is_flag=True, help="Also how often both say the same next token, on the same text."
)
@click.option(
    "--recall", multiple=True, type=click.IntRange(min=64), help="Also tests of recall at this length."
)
@click.option(
    "--cases", default=16, type=click.IntRange(min=1), help="Questions per test of recall and length."
)
@click.option(
    "--task", "tasks", multiple=True, metavar="NAME", help="Also a task of lm-eval (may be repeated)."
)
@click.option(
    "--include", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Further lm-eval tasks."
)
@click.option("--limit", type=click.IntRange(min=1), help="Examples per task.")
@click.option(
    "--report", is_flag=True, help="Write ARTIFACT/report: Markdown, JSON and plots of all measured so far."
)
@click.option("--device", type=DEVICE, default="cpu", help="Where to evaluate.")
@json_option
def evaluate(
    artifact: Path,
    files: tuple[Path, ...],
    contexts: tuple[int, ...],
    tokens: int | None,
    stride: int | None,
    agreement: bool,
    recall: tuple[int, ...],
    cases: int,
    tasks: tuple[str, ...],
    include: Path | None,
    limit: int | None,
    report: bool,
    device: str,
    as_json: bool,
) -> None:
    """ARTIFACT beside its teacher: perplexity on TEXT files or the recipe's, recall, agreement, tasks.

    Everything is kept in the manifest, from which `push` makes the model card. Without TEXT, perplexity is
    measured on the recipe's files unless something else is asked for.
    """
    from lineahead.convert.judging.judge import Wanted, judge
    from lineahead.convert.quality import measure_quality, summary
    from lineahead.convert.training.progress import stderr_progress

    recipe = chosen_recipe(None, (), artifact).eval
    wanted = Wanted(
        recall=recall,
        cases=cases,
        agreement=files if agreement else (),
        contexts=contexts or recipe.context,
        tokens=tokens or recipe.tokens,
        tasks=tasks,
        include=include,
        limit=limit,
    )
    shown: list[dict[str, Any]] = []
    if files or not (wanted.asks or report):
        found = measure_quality(
            artifact,
            files or [Path(name) for name in recipe.files],
            context=wanted.contexts,
            tokens=wanted.tokens,
            stride=stride,
            device=device,
            progress=stderr_progress(),
        )
        shown += [summary(one) for one in found]
    if wanted.asks:
        with counting() as progress:
            shown += _rows(judge(artifact, wanted, device=device, report=progress))
    if report:
        shown.append({"report": str(_write(artifact))})
    show(shown, as_json)


def _rows(results: Any) -> Sequence[dict[str, Any]]:
    """One flat row per result, of what was measured now."""
    found: list[dict[str, Any]] = []
    for one in (*results.recalls, *results.agreements, *results.tasks):
        row = one.model_dump(mode="json")
        row.update(row.pop("accuracy", None) or row.pop("value", None) or {})
        found.append(row)
    return found


def _write(artifact: Path) -> Path:
    from lineahead.convert.judging.report import write_report
    from lineahead.recipes.manifest import read_manifest

    return write_report(artifact, read_manifest(artifact))


COMMANDS: tuple[click.Command, ...] = (evaluate,)
