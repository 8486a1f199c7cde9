"""Compile the CUDA kernels for the CPU, threads being fibers (`emulated`), with or without a defect."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from lineahead.plugins.augmented_attention import native

SOURCES = native.SOURCES.parent / "cuda"
FUSIONS = native.SOURCES.parents[2] / "step_fusions" / "csrc" / "cuda"
EMULATED_LIBRARY = "libemulated.so"
EMULATED = Path(__file__).resolve().parent / "emulated"


def damaged_sources(folder: Path, *edits: tuple[str, str, str], origins: Sequence[Path] = (SOURCES,)) -> None:
    """The kernels' sources in `folder`; an edit is a file, a text in it, and what replaces it."""
    for path in (path for origin in origins for path in origin.iterdir()):
        if path.is_file():
            shutil.copy(path, folder)
    for file, old, new in edits:
        source = (folder / file).read_text(encoding="utf-8")
        assert source.count(old) == 1, f"{source.count(old)} places in {file} have {old!r}"
        (folder / file).write_text(source.replace(old, new), encoding="utf-8")


def build_emulated(folder: Path, *edits: tuple[str, str, str]) -> Path:
    """The kernels as a library in `folder`, with the edits of :func:`damaged_sources`."""
    damaged_sources(folder, *edits, origins=(SOURCES, FUSIONS))
    for path in EMULATED.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    library = folder / EMULATED_LIBRARY
    files = ["launch.cu", "prefill.cu", *(path.name for path in SOURCES.glob("*.cpp")), "emulator.cpp"]
    files += sorted(path.name for path in FUSIONS.glob("*.cu"))
    command = [native.find_compiler(), "-std=c++17", "-O1", "-fPIC", "-shared", "-w", "-I.", "-x", "c++"]
    subprocess.run([*command, *files, "-o", library], cwd=folder, check=True)
    return library
