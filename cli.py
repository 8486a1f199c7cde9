"""Command line. Commands parse arguments, call one library function, print its result.

Results go to stdout (``--json`` for machines), progress and logs to stderr. Nothing heavy is imported before
a command runs, so ``--help`` answers at once.
"""

import errno
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

import click

from lineahead.errors import InputError, LineaheadError, StorageError

DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
PRECISIONS = ("fp32", "int8", "int4")
BACKENDS = ("onnxruntime", "eager")
DRAFTERS = ("none", "lookup", "medusa")
DEVICES = ("cpu", "cuda")
IMPLEMENTATIONS = ("auto", "native", "function")
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


def _fail(ctx: click.Context, message: str, hint: str | None, code: int) -> None:
    click.echo(f"Error: {' '.join(message.split())}", err=True)
    if hint:
        click.echo(f"Hint: {hint}", err=True)
    ctx.exit(code)


def _note(message: str) -> None:
    """Progress, for people."""
    click.echo(message, err=True)


def _show(result: Mapping[str, Any] | Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Print a result: one JSON object for machines, tables for people."""
    if as_json:
        click.echo(json.dumps(result, default=str))
        return
    from lineahead.runtime.tables import as_text

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 160
    click.echo(as_text(result, width=width), nl=False)


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
    operator = click.Choice(IMPLEMENTATIONS)
    for option in (
        click.option(
            "--implementation", type=operator, help="Of the operator, on ONNX Runtime [default: auto]."
        ),
        click.option("--threads", default=0, help="Threads of the backend; 0 lets it choose."),
        click.option("--device", type=click.Choice(DEVICES), default="cpu", help="Where to decode."),
        click.option("--backend", type=click.Choice(BACKENDS), default="onnxruntime", help="What decodes."),
        click.option(
            "--precision", type=click.Choice(PRECISIONS), default="fp32", help="Weights' precision."
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


@click.group(cls=ErrorGroup, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="lineahead")
@click.option("-v", "--verbose", count=True, help="Log more (twice for debugging).")
@click.option("-q", "--quiet", is_flag=True, help="Log errors only.")
def main(verbose: int, quiet: bool) -> None:
    """Linearize, fine-tune, export and run language models with exact speculative decoding."""
    level = logging.ERROR if quiet else [logging.WARNING, logging.INFO, logging.DEBUG][min(verbose, 2)]
    logging.basicConfig(level=level, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "info" if verbose > 1 else "error")


@main.command()
@click.argument("names", nargs=-1, metavar="[MODEL_TYPE]...")
@click.option(
    "--output", type=click.Path(path_type=Path), help="Keep the rows here; reused while versions match."
)
@click.option("--workers", default=2, help="Processes at a time.")
@json_option
def architectures(names: tuple[str, ...], output: Path | None, workers: int, as_json: bool) -> None:
    """Measure which model types of transformers can be linearized: each one tiny, with random weights."""
    from lineahead.convert.architectures import load_rows, measure_architectures, save_rows

    rows = load_rows(output) if output and not names else None
    if rows is None:
        rows = measure_architectures(
            names or None,
            lambda row, done, total: _note(f"{done}/{total} {row.model_type}: {row.status}"),
            workers=workers,
        )
        if output:
            save_rows(output, rows)
    found = {
        status: sum(row.status == status for row in rows)
        for status in ("exact", "inexact", "refused", "failed")
    }
    _show({**found, "rows": [vars(row) for row in rows]}, as_json)


@main.command()
@artifact_argument
@click.option("-p", "--prompt", help="The prompt; without it or --file, standard input is read.")
@click.option("-f", "--file", type=click.File(encoding="utf-8"), help="File with the prompt.")
@click.option("--chat/--raw", default=None, help="Use the chat template [default: when there is one].")
@click.option("--speculate", type=click.Choice(DRAFTERS), default="none", help="What proposes tokens.")
@click.option("--tree/--chain", default=True, help="Shape of the Medusa heads' proposals.")
@click.option("--draft-length", default=8, help="Most tokens proposed per step.")
@click.option("--governed", is_flag=True, help="Let measured costs choose the draft length.")
@click.option("--typical", is_flag=True, help="Medusa's typical acceptance: LOSSY, changes the distribution.")
@click.option("--ignore-position-limit", is_flag=True, help="Go on past the trained positions.")
@click.option("--stats", is_flag=True, help="Print counts and times to stderr.")
@sampling_options
@backend_options
@json_option
def generate(
    artifact: Path,
    prompt: str | None,
    file: TextIO | None,
    chat: bool | None,
    speculate: str,
    tree: bool,
    draft_length: int,
    governed: bool,
    typical: bool,
    ignore_position_limit: bool,
    stats: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Stream an answer of ARTIFACT to standard output."""
    from lineahead.runtime import acceptance
    from lineahead.runtime.generate import Generator, open_drafter
    from lineahead.runtime.sampling import SamplingParams

    text = _prompt(prompt, file)
    where = {"provider": options.pop("device"), "threads": options.pop("threads")}
    backend = {name: options.pop(name) for name in ("backend", "precision", "implementation")}
    params = SamplingParams(**{**options, "stop": tuple(options["stop"])})
    generator = Generator.load(artifact, **backend, **where)
    drafter = open_drafter(
        generator.artifact, speculate, nodes=draft_length, shape="adaptive" if tree else "chain", **where
    )
    if chat is None:
        chat = generator.tokenizer.template is not None
    tokens = generator.chat([{"role": "user", "content": text}]) if chat else generator.encode(text)
    events = generator.stream(
        [tokens],
        params,
        drafter=drafter,
        acceptance=acceptance.typical() if typical else acceptance.lossless,
        governed=governed,
        ignore_position_limit=ignore_position_limit,
    )
    pieces: list[str] = []
    for event in events:
        pieces.append(event.text)
        if not as_json:
            click.echo(event.text, nl=False)
            sys.stdout.flush()
    figures = generator.statistics.as_dict()
    if as_json:
        _show({"text": "".join(pieces), "lossless": not typical, "statistics": figures}, as_json)
        return
    click.echo()
    if stats:
        _note(json.dumps(figures))


def _prompt(prompt: str | None, file: TextIO | None) -> str:
    """The prompt from the option, a file or standard input."""
    if prompt is None and file is None and sys.stdin.isatty():
        raise InputError("no prompt", hint="Give --prompt TEXT, --file PATH, or text on standard input.")
    text = prompt if prompt is not None else (file or sys.stdin).read()
    if not text.strip():
        raise InputError("the prompt is empty", hint="Give at least one word.")
    return text


@main.command()
@artifact_argument
@click.option("--context", "contexts", multiple=True, type=int, help="Context length (may be repeated).")
@click.option(
    "--precision", "precisions", multiple=True, type=click.Choice(PRECISIONS), help="Graph to measure."
)
@click.option("--threads", default=2, help="Threads of every program measured.")
@click.option("--text", type=click.Path(path_type=Path), help="Text that fills the context.")
@click.option(
    "--prompts", type=click.Path(path_type=Path), help="Prompts for speculation: lines or JSON lines."
)
@click.option("--prompt-count", default=10, help="How many of them.")
@click.option("--tokens", default=128, help="Tokens generated for each.")
@click.option("--temperature", default=0.0, help="0 decodes greedily.")
@click.option("--draft-length", "draft_nodes", default=5, help="Most tokens proposed per step.")
@click.option("--governed", is_flag=True, help="Also run each drafter under the governor.")
@click.option("--baseline", metavar="CHECKPOINT", help="Original checkpoint for transformers.generate.")
@click.option("--gguf", metavar="FILE", help="GGUF file for llama.cpp.")
@click.option("--samples", default=32, help="Timed steps per point.")
@json_option
def bench(
    artifact: Path,
    contexts: tuple[int, ...],
    precisions: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Measure ARTIFACT's speed, other programs beside it, and the ratios; prints achieved GB/s."""
    from lineahead.runtime.bench.report import CONTEXTS, BenchRequest
    from lineahead.runtime.bench.report import bench as measure

    request = BenchRequest(contexts=contexts or CONTEXTS, precisions=precisions or ("fp32",), **options)
    _show(measure(artifact, request, progress=_note).as_dict(), as_json)


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
