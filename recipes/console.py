"""What commands share: one-line errors, results as JSON or tables, options that several of them take."""

import contextlib
import errno
import json
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import click

from lineahead.errors import InputError, LineaheadError, StorageError

if TYPE_CHECKING:
    from lineahead.recipes.schema import Recipe

DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
PRECISION = click.Choice(("fp32", "int8", "int4"))
CERTIFIED = click.Choice(("int8", "int4", "bf16", "fp16"))
BACKEND = click.Choice(("onnxruntime", "eager", "tensorrt"))
DECODED = click.Choice(("fp32", "fp16", "bf16", "int8", "int4"))
DRAFTER = click.Choice(("none", "lookup", "medusa", "recurrent", "auto"))
ANY_DRAFTER = click.Choice((*DRAFTER.choices, "model"))
DEVICE = click.Choice(("cpu", "cuda"))
IMPLEMENTATION = click.Choice(("auto", "native", "function"))
Command = TypeVar("Command", bound=Callable[..., Any])


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
            message = f"no space left on the disk of {where}"
            _fail(ctx, message, "Free some space and run again.", StorageError.exit_code)


def set_up(*, verbose: int, quiet: bool, passive: bool) -> None:
    """Send logs to stderr and keep other libraries' remarks about themselves away; nothing is imported.

    Args:
        verbose: 0 for warnings, 1 for information, 2 for everything.
        quiet: errors only.
        passive: let idle threads sleep instead of spin, which is ten times faster when cores are shared.
    """
    level = logging.ERROR if quiet else [logging.WARNING, logging.INFO, logging.DEBUG][min(verbose, 2)]
    logging.basicConfig(level=level, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    if not verbose:
        warnings.simplefilter("ignore")
        os.environ.setdefault("TORCH_LOGS", "-onnx")
    if quiet or not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    if passive:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "info" if verbose > 1 else "error")


def _fail(ctx: click.Context, message: str, hint: str | None, code: int) -> None:
    click.echo(f"Error: {' '.join(message.split())}", err=True)
    if hint:
        click.echo(f"Hint: {hint}", err=True)
    ctx.exit(code)


def note(message: str) -> None:
    """Progress, for people; --quiet drops it."""
    if not click.get_current_context().find_root().params.get("quiet"):
        click.echo(message, err=True)


@contextlib.contextmanager
def counting() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr for work that reports its name, what is done, and how much there is in all."""
    from tqdm import tqdm

    bar = tqdm(total=1, bar_format="{desc}: {n_fmt} of {total_fmt} {bar} {elapsed}", leave=False)

    def report(name: str, done: int, total: int) -> None:
        bar.set_description_str(name, refresh=False)
        bar.total, bar.n = total, done
        bar.refresh()

    with contextlib.closing(bar):
        yield report


def show(result: Mapping[str, Any] | Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Print a result: one JSON object for machines, tables for people."""
    if as_json:
        click.echo(json.dumps(result, default=str))
        return
    from lineahead.recipes.tables import as_text

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 160
    click.echo(as_text(result, width=width), nl=False)


def read_prompt(prompt: str | None, file: TextIO | None) -> str:
    """The prompt from the option, a file or standard input.

    Raises:
        InputError: when there is none, or it is empty.
    """
    if prompt is None and file is None and sys.stdin.isatty():
        raise InputError("no prompt", hint="Give --prompt TEXT, --file PATH, or text on standard input.")
    text = prompt if prompt is not None else (file or sys.stdin).read()
    if not text.strip():
        raise InputError("the prompt is empty", hint="Give at least one word.")
    return text


def chosen_recipe(reference: str | None, overrides: Sequence[str], artifact: Path | None = None) -> "Recipe":
    """The named recipe, or the one that an artifact was made with."""
    from lineahead.recipes.load import load_recipe, parse_recipe
    from lineahead.recipes.manifest import FILE, read_manifest

    if reference is not None or artifact is None:
        return load_recipe(reference or "demo", overrides)
    return parse_recipe(read_manifest(artifact).recipe, str(artifact / FILE), overrides)


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
artifact_argument = click.argument("artifact", type=click.Path(path_type=Path))


def recipe_options(default: str | None) -> Callable[[Command], Command]:
    """``--recipe`` and ``key.sub=value`` overrides; without a default, the artifact's own recipe is used."""

    def wrap(command: Command) -> Command:
        shown = default or "the artifact's own"
        text = f"Recipe file or a shipped recipe's name (default: {shown})."
        command = click.argument("overrides", nargs=-1, metavar="[KEY.SUB=VALUE]...")(command)
        return click.option("-c", "--recipe", default=default, metavar="NAME_OR_FILE", help=text)(command)

    return wrap


def backend_options(command: Command) -> Command:
    """Where and in which precision an artifact is decoded."""
    for option in (
        click.option(
            "--implementation", type=IMPLEMENTATION, help="Of the operator, on ONNX Runtime [default: auto]."
        ),
        click.option("--threads", default=0, help="Threads of the backend; 0 lets it choose."),
        click.option("--device", "provider", type=DEVICE, default="cpu", help="Where to decode."),
        click.option("--backend", type=BACKEND, default="onnxruntime", help="What decodes."),
        click.option("--precision", type=DECODED, default="fp32", help="Weights' precision."),
        click.option("--rebuild", is_flag=True, help="Build the TensorRT engine if none fits this machine."),
    ):
        command = option(command)
    return command


def draft_model_options(command: Command) -> Command:
    """Which second model proposes tokens."""
    for option in (
        click.option("--draft-precision", type=PRECISION, default="int4", help="Of the draft model."),
        click.option(
            "--draft-model",
            type=click.Path(path_type=Path),
            help="Artifact that drafts (--speculate model or auto).",
        ),
    ):
        command = option(command)
    return command


def sampling_options(command: Command) -> Command:
    """Names as in transformers' generation config."""
    for option in (
        click.option("--ignore-eos", is_flag=True, help="Go on after an end-of-sequence token."),
        click.option("--stop", multiple=True, metavar="TEXT", help="End at this string (may be repeated)."),
        click.option("--seed", default=0, help="Of the random stream."),
        click.option("--top-p", default=1.0, help="Nucleus; 1 keeps all tokens."),
        click.option("--top-k", default=0, help="Keep the k best tokens; 0 keeps all."),
        click.option("--temperature", default=0.0, help="0 decodes greedily."),
        click.option("--max-new-tokens", "max_tokens", default=256, help="Most tokens to generate."),
    ):
        command = option(command)
    return command
