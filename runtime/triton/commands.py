"""The command that writes a Triton model repository."""

from pathlib import Path
from typing import Any

import click

from lineahead.recipes.console import DRAFTER, artifact_argument, backend_options, json_option, show


@click.command()
@artifact_argument
@click.argument("repository", type=click.Path(path_type=Path))
@click.option("--name", help="The model's name [default: the artifact's folder's].")
@click.option("--instances", default=1, type=click.IntRange(1), help="Processes that load the model.")
@click.option("--slots", default=16, type=click.IntRange(1), help="Requests decoded together.")
@click.option("--queue", default=256, type=click.IntRange(1), help="Requests that may wait.")
@click.option("--prefix-cache", default=256, type=click.IntRange(0), help="MiB of cached prefix states.")
@click.option("--speculate", type=DRAFTER, default="none", help="What proposes tokens.")
@click.option("--draft-length", default=5, type=click.IntRange(1), help="Most tokens proposed per step.")
@click.option("--max-tokens", default=2048, type=click.IntRange(1), help="Most tokens of an answer.")
@backend_options
@json_option
def triton(
    artifact: Path, repository: Path, name: str | None, instances: int, as_json: bool, **options: Any
) -> None:
    """Write ARTIFACT into REPOSITORY, a model repository of NVIDIA's Triton Inference Server.

    The model runs in Triton's Python backend, streams (decoupled), and needs this package in Triton's Python.
    Engines of TensorRT go with their plugin library.
    """
    from lineahead.errors import InputError
    from lineahead.runtime.engine.options import EngineOptions
    from lineahead.runtime.triton.repository import write_repository

    for unused in ("implementation", "rebuild"):
        if options.pop(unused):
            raise InputError(f"--{unused} with export triton", hint="Leave it out.")
    chosen = EngineOptions(device=options.pop("provider"), **options)
    found = write_repository(artifact, repository, chosen, name=name, instances=instances)
    size = sum(path.stat().st_size for path in found.rglob("*") if path.is_file())
    show({"model": found.name, "folder": str(found), "megabytes": round(size / 1e6, 1)}, as_json)
