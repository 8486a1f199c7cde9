"""Command that builds engines: parse, one library call, print."""

from pathlib import Path
from typing import Any

import click

from lineahead.recipes.console import artifact_argument, json_option, note, show


@click.command()
@artifact_argument
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(("fp32", "fp16", "bf16")),
    default=("fp16",),
    help="Of weights and activations (may be repeated); sums stay float32.",
)
@click.option(
    "--bucket",
    "buckets",
    multiple=True,
    metavar="BATCHxNODES",
    help="Calls that get kernels of their own [default: 1x1, 1x9, 1x64, 4x1, 4x9].",
)
@click.option(
    "--prefill",
    multiple=True,
    metavar="BATCHxNODES",
    help="Also build an engine that only reads prompts, in chunks of this size.",
)
@click.option(
    "--plugins",
    "library",
    type=click.Path(path_type=Path),
    help="liblineahead_plugins.so, built for this TensorRT.",
)
@click.option(
    "--optimization-level",
    type=click.IntRange(0, 5),
    help="Of TensorRT's builder [default: 1 before TensorRT 10, else 3].",
)
@click.option("--cublas", is_flag=True, help="Let TensorRT 8.6 use cuBLAS, which must then be installed.")
@click.option(
    "--fuse/--no-fuse",
    default=None,
    help="Use the library's fused operators between products [default: in fp16 before TensorRT 10].",
)
@click.option(
    "--draft/--no-draft",
    default=True,
    help="Also build an engine of the artifact's recurrent draft, if it has one [default: yes].",
)
@click.option(
    "--outside",
    is_flag=True,
    help="Keep large weights in a file beside: built sooner, steps of one node slower (8.6: 15 %).",
)
@click.option("--detailed", is_flag=True, help="Keep layer names in the engine, for profiles.")
@json_option
def tensorrt(
    artifact: Path,
    precisions: tuple[str, ...],
    library: Path | None,
    buckets: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Engines of ARTIFACT for this GPU and this TensorRT, each kept only when ONNX Runtime agrees."""
    from lineahead.convert.tensorrt.export import DEFAULT_BUCKETS, Options, export_tensorrt

    chosen = Options(buckets=buckets or DEFAULT_BUCKETS, **options)
    show(
        export_tensorrt(artifact, precisions=precisions, library=library, progress=note, options=chosen),
        as_json,
    )
