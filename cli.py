"""Command line. Commands parse arguments, call one library function, print its result.

Results go to stdout (``--json`` for machines), progress and logs to stderr. Nothing heavy is imported before
a command runs, so ``--help`` answers at once.
"""

import errno
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from lineahead.errors import LineaheadError, StorageError

DISK_FULL = {errno.ENOSPC, errno.EDQUOT}


class ErrorGroup(click.Group):
    """Turn our own errors into one-line messages; let bugs keep their traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; a `LineaheadError` becomes one line, a hint and its class's exit status."""
        try:
            return super().invoke(ctx)
        except LineaheadError as error:
            _fail(ctx, str(error), error.hint, error.exit_code)
        except KeyboardInterrupt:
            _fail(ctx, "interrupted", "Run the same command again: finished steps are kept.", 130)
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            where = error.filename or os.getcwd()
            _fail(
                ctx,
                f"no space left on the disk of {where}",
                "Free some space and run again.",
                StorageError.exit_code,
            )


def _fail(ctx: click.Context, message: str, hint: str | None, code: int) -> None:
    click.echo(f"Error: {' '.join(message.split())}", err=True)
    if hint:
        click.echo(f"Hint: {hint}", err=True)
    ctx.exit(code)


def _show(result: Mapping[str, Any] | Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Print a result: one JSON object for machines, a table for people."""
    if as_json:
        click.echo(json.dumps(result, indent=None, default=str))
        return
    from rich.console import Console
    from rich.table import Table

    rows = [result] if isinstance(result, Mapping) else list(result)
    table = Table(show_header=not isinstance(result, Mapping), header_style="bold")
    if isinstance(result, Mapping):
        for name, value in result.items():
            table.add_row(str(name), _cell(value))
    elif rows:
        for name in rows[0]:
            table.add_column(str(name))
        for row in rows:
            table.add_row(*(_cell(row.get(name)) for name in rows[0]))
    width = None if sys.stdout.isatty() else 160
    Console(file=sys.stdout, width=width, markup=False, highlight=False).print(table)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group(cls=ErrorGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="lineahead")
@click.option("-v", "--verbose", count=True, help="Log more (twice for debugging).")
@click.option("-q", "--quiet", is_flag=True, help="Log errors only.")
def main(verbose: int, quiet: bool) -> None:
    """Linearize, fine-tune, export and run language models with exact speculative decoding."""
    level = logging.ERROR if quiet else [logging.WARNING, logging.INFO, logging.DEBUG][min(verbose, 2)]
    logging.basicConfig(level=level, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "info" if verbose > 1 else "error")


@main.command()
@click.argument("artifact", required=False, type=click.Path(path_type=Path))
@json_option
@click.pass_context
def doctor(ctx: click.Context, artifact: Path | None, as_json: bool) -> None:
    """Check this installation, and the parts of ARTIFACT; every problem comes with its cure.

    The exit status is 1 when there is a problem.
    """
    from lineahead.runtime.artifact_check import examine_artifact
    from lineahead.runtime.doctor import examine_environment

    findings = examine_environment() + (examine_artifact(artifact) if artifact else [])
    rows = [one.as_dict() for one in findings]
    healthy = all(one.status != "problem" for one in findings)
    _show({"healthy": healthy, "findings": rows} if as_json else rows, as_json)
    ctx.exit(0 if healthy else 1)


if __name__ == "__main__":
    main(prog_name="lineahead")
