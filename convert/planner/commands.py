"""The `plan` command: parse, one library call, print."""

from pathlib import Path

import click

from lineahead.recipes.console import DEVICE, artifact_argument, counting, json_option, show


@click.command()
@artifact_argument
@click.argument(
    "files",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="TEXT...",
)
@click.option("--keep", type=click.IntRange(min=0), help="How many layers stay softmax.")
@click.option("--state-mb", type=click.FloatRange(min=0), help="Instead: MB of state per sequence, in fp32.")
@click.option(
    "--context", default=1024, type=click.IntRange(min=2), help="Tokens per window, and of the state."
)
@click.option("--tokens", default=4096, type=click.IntRange(min=2), help="Read by every probe.")
@click.option(
    "--score", default=0, type=click.IntRange(min=0), help="Further plans to predict and to measure."
)
@click.option("--device", type=DEVICE, default="cpu", help="Where to probe.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the plan here, as JSON.")
@json_option
def plan(
    artifact: Path,
    files: tuple[Path, ...],
    keep: int | None,
    state_mb: float | None,
    context: int,
    tokens: int,
    score: int,
    device: str,
    output: Path | None,
    as_json: bool,
) -> None:
    """Which layers of ARTIFACT to keep softmax: each is probed on TEXT, alone linear and alone softmax.

    Prints the flag for `lineahead convert`, the perplexity predicted before training, and the state's size.
    """
    from lineahead.convert.planner.plan import plan_layers, write_plan

    with counting() as report:
        found = plan_layers(
            artifact,
            files,
            keep=keep,
            limit=None if state_mb is None else int(state_mb * 1e6),
            context=context,
            tokens=tokens,
            score=score,
            device=device,
            report=report,
        )
    if output is not None:
        write_plan(output, found)
    show({"convert": found.flag, **found.model_dump(mode="json")}, as_json)


COMMANDS: tuple[click.Command, ...] = (plan,)
