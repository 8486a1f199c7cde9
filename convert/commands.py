"""Commands that make artifacts: parse, one library call, print. Nothing heavy is imported before one runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from lineahead.convert.tensorrt.commands import tensorrt
from lineahead.recipes.console import (
    DEVICE,
    PRECISION,
    artifact_argument,
    chosen_recipe,
    json_option,
    note,
    recipe_options,
    show,
)


@click.command()
@click.argument("source")
@click.argument("output", type=click.Path(path_type=Path))
@recipe_options("demo")
@click.option("--revision", help="Branch, tag or commit on the Hub.")
@click.option("--cache-dir", type=click.Path(path_type=Path), help="Of the Hub.")
@click.option("--token", envvar="HF_TOKEN", help="For private models; better in HF_TOKEN or `hf auth login`.")
@click.option("--tokenizer", help="Take the tokenizer from here instead.")
@click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with SOURCE.")
@click.option("--keep-softmax", metavar="LAYERS", help="Layers left as they are: 0,5 or local, none, all.")
@json_option
def convert(
    source: str,
    output: Path,
    recipe: str,
    overrides: Sequence[str],
    keep_softmax: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Replace the attention of SOURCE by the recipe's operator, untrained, and write an artifact folder.

    SOURCE is a Hub id, a folder, a .gguf file, or package:NAME for a GGUF file in an installed package.
    """
    from lineahead.convert.pipeline import convert_checkpoint

    if keep_softmax is not None:
        kept = keep_softmax if keep_softmax in ("local", "none", "all") else f"[{keep_softmax}]"
        overrides = (*overrides, f"keep_softmax={kept}")
    manifest = convert_checkpoint(source, output, chosen_recipe(recipe, overrides), **options)
    show({"artifact": str(output), **manifest.model.model_dump(mode="json")}, as_json)


@click.command()
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
    manifest = pipeline.finetune(artifact, chosen_recipe(recipe, overrides, artifact), options)
    show([one.model_dump(mode="json") for one in manifest.training], as_json)


@click.command()
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


@click.command()
@artifact_argument
@recipe_options(None)
@click.option("--device", type=DEVICE, help="Where to train [default: the GPU, if any].")
@json_option
def draft(
    artifact: Path, recipe: str | None, overrides: Sequence[str], device: str | None, as_json: bool
) -> None:
    """Train draft heads for ARTIFACT on text that it writes itself; an interrupted run goes on."""
    from lineahead.convert.pipeline import train_draft

    manifest = train_draft(artifact, chosen_recipe(recipe, overrides, artifact), device=device)
    show([one.model_dump(mode="json") for one in manifest.drafts], as_json)


@click.command("distill-data")
@click.argument("model")
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--tokens", default=1 << 20, type=click.IntRange(min=1), help="How many to write, at least.")
@click.option("--sequence-length", default=1024, type=click.IntRange(min=2), help="Tokens of a text.")
@click.option("--batch-size", default=32, type=click.IntRange(min=1), help="Texts written at once.")
@click.option("--temperature", default=1.0, type=click.FloatRange(min=0, min_open=True), help="Of sampling.")
@click.option("--top-p", default=0.95, type=click.FloatRange(min=0, max=1, min_open=True), help="Nucleus.")
@click.option("--prompts", multiple=True, help="What texts begin with: a line each, or JSON lines.")
@click.option("--seed", default=0, help="Of sampling.")
@click.option(
    "--precision", default="auto", type=click.Choice(("auto", "fp32", "bf16")), help="Of the weights."
)
@click.option("--device", type=DEVICE, help="Where to sample [default: the GPU, if any].")
@json_option
def distill_data(
    model: str,
    output: Path,
    prompts: tuple[str, ...],
    seed: int,
    precision: Any,
    device: str | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Let the checkpoint MODEL write training text into OUTPUT (.jsonl or .jsonl.gz); a killed run goes on.

    MODEL is as SOURCE of `lineahead convert`; a recipe then reads the file: data.files=[OUTPUT].
    """
    from lineahead.convert.drafts.distill_data import write_samples
    from lineahead.convert.training.progress import stderr_progress
    from lineahead.recipes.schema import Samples

    samples = Samples(prompts=prompts, **settings)
    found = write_samples(
        model, output, samples, seed=seed, precision=precision, device=device, progress=stderr_progress()
    )
    show({"file": str(found.file), "texts": found.texts, "tokens": found.tokens}, as_json)


@click.group()
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

    wanted = chosen_recipe(None, (), artifact).export
    found = export_onnx(
        artifact, precisions=precisions or wanted.precisions, opset=opset or wanted.opset, progress=note
    )
    show([one.model_dump(mode="json") for one in found], as_json)


export.add_command(tensorrt)
COMMANDS: tuple[click.Command, ...] = (convert, finetune, architectures, draft, distill_data, export)
