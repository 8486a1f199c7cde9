"""Compile the CUDA kernels for the CPU, threads being fibers (`emulated`), with or without a defect."""

import shutil
import subprocess
from pathlib import Path

from lineahead.plugins.augmented_attention import native

SOURCES = native.SOURCES.parent / "cuda"
EMULATED = Path(__file__).resolve().parent / "emulated"


def build_emulated(folder: Path, *edits: tuple[str, str, str]) -> Path:
    """The kernels as a library in `folder`; an edit is a file, a text in it, and what replaces it."""
    for path in (*SOURCES.iterdir(), *EMULATED.iterdir()):
        if path.is_file():
            shutil.copy(path, folder)
    for file, old, new in edits:
        source = (folder / file).read_text(encoding="utf-8")
        assert source.count(old) == 1, f"{source.count(old)} places in {file} have {old!r}"
        (folder / file).write_text(source.replace(old, new), encoding="utf-8")
    library = folder / "libemulated.so"
    files = ["launch.cu", *(path.name for path in SOURCES.glob("*.cpp")), "emulator.cpp"]
    command = [native.find_compiler(), "-std=c++17", "-O1", "-fPIC", "-shared", "-w", "-I.", "-x", "c++"]
    subprocess.run([*command, *files, "-o", library], cwd=folder, check=True)
    return library
