"""``lineahead plugin``."""

from pathlib import Path

import click

from lineahead.recipes.console import json_option, note, show

ROOT = click.option(
    "--tensorrt-root",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder with TensorRT's include/ [default: $TENSORRT_ROOT, pip's and the system's folders].",
)


@click.group()
def plugin() -> None:
    """Build the operator as a TensorRT plugin library, and say what a library is."""


@plugin.command()
@ROOT
@click.option(
    "-a",
    "--arch",
    multiple=True,
    metavar="SM",
    help="Build for this one, e.g. 90 (repeatable) [default: all].",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Copy the library there, too.")
@click.option("-j", "--jobs", type=click.IntRange(min=1), help="Compilations at a time [default: cores].")
@json_option
def build(
    tensorrt_root: Path | None, arch: tuple[str, ...], output: Path | None, jobs: int | None, as_json: bool
) -> None:
    """Build liblineahead_plugins.so for the TensorRT whose headers are found; cached by its sources."""
    from lineahead.plugins import library
    from lineahead.recipes.files import replacing

    headers = library.find_headers(tensorrt_root)
    architectures = arch or library.ARCHITECTURES
    if not library.cached(headers, architectures).is_file():
        note(f"building for TensorRT {headers.version} and sm_{', sm_'.join(architectures)}: minutes")
    path = library.build(headers, architectures=architectures, jobs=jobs)
    if output is not None:
        target = output / library.LIBRARY if output.is_dir() else output
        with replacing(target) as temporary:
            temporary.write_bytes(path.read_bytes())
        path = target
    show({"library": str(path), **library.describe(path)["build"]}, as_json)


@plugin.command("show")
@click.argument("library_path", metavar="LIBRARY", type=click.Path(path_type=Path))
@json_option
def show_library(library_path: Path, as_json: bool) -> None:
    """Say what LIBRARY is: plugin name and version, fields, TensorRT version, architectures, source hash."""
    from lineahead.plugins import library

    found = library.describe(library_path)
    flat = {**found, **found.pop("build")}
    show(flat if as_json else {name: _text(value) for name, value in flat.items()}, as_json)


def _text(value: object) -> object:
    return ", ".join(str(one) for one in value) if isinstance(value, (list, dict)) else value


COMMANDS: tuple[click.Command, ...] = (plugin,)
