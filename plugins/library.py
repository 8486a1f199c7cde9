"""``liblineahead_plugins.so``: built by CMake, cached, asked what it is. Needs neither TensorRT nor a GPU."""

import ctypes
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lineahead.errors import BackendError
from lineahead.plugins.augmented_attention.native import cache_folder

logger = logging.getLogger(__name__)

LIBRARY = "liblineahead_plugins.so"
FOLDER = Path(__file__).parent
OPERATORS = ("augmented_attention", "step_fusions")
SOURCES = tuple(FOLDER / one / "csrc" / part for one in OPERATORS for part in ("cuda", "tensorrt"))
SUFFIXES = (".h", ".cuh", ".cu", ".cpp")
HEADER, VERSION_HEADER = "NvInferRuntime.h", "NvInferVersion.h"
VARIABLE = "TENSORRT_ROOT"
ARCHITECTURES = ("80", "86", "89", "90", "100", "120")
SYSTEM_FOLDERS = (
    "/usr/local/tensorrt",
    "/usr/local/TensorRT",
    "/opt/tensorrt",
    "/opt/TensorRT",
    "/usr/include/x86_64-linux-gnu",
    "/usr/include/aarch64-linux-gnu",
    "/usr/include",
    "/usr/local/include",
)
HEADERS_HINT = (
    "Install TensorRT's development files (libnvinfer-headers-dev, or the tar archive) and set "
    f"{VARIABLE}=FOLDER or pass --tensorrt-root; the pip packages have libraries but no headers."
)


@dataclass(frozen=True, kw_only=True)
class Headers:
    """TensorRT's headers.

    Attributes:
        folder: where ``NvInferRuntime.h`` is.
        version: such as ``8.6.1``.
    """

    folder: Path
    version: str

    @property
    def major(self) -> int:
        """Major version."""
        return int(self.version.split(".")[0])


def find_headers(root: Path | None = None) -> Headers:
    """TensorRT's headers in `root`, else in $TENSORRT_ROOT, else in pip's and the system's folders.

    Raises:
        BackendError: naming the file that is missing and where it was looked for.
    """
    named = root or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    pip = sorted(Path(sysconfig.get_path("purelib")).glob("tensorrt*"))
    roots = [named] if named else [*pip, *(Path(one) for one in SYSTEM_FOLDERS)]
    for folder in (one for base in roots for one in (base / "include", base)):
        if (folder / HEADER).is_file():
            return Headers(folder=folder, version=_version(folder / VERSION_HEADER))
    where = str(named) if named else "pip's packages, /usr/include, /usr/local/tensorrt and /opt/tensorrt"
    raise BackendError(f"no TensorRT headers: {HEADER} is not in {where}", hint=HEADERS_HINT)


def _version(path: Path) -> str:
    if not path.is_file():
        raise BackendError(f"no TensorRT headers: {path} is missing", hint=HEADERS_HINT)
    text = path.read_text(encoding="utf-8", errors="replace")
    parts = []
    for name in ("MAJOR", "MINOR", "PATCH"):  # version 11 defines one name by another
        found = re.search(rf"define\s+(?:NV_TENSORRT_{name}|TRT_{name}_ENTERPRISE)\s+(\d+)", text)
        if found is None:
            raise BackendError(
                f"{path}: no NV_TENSORRT_{name} in it",
                hint="Point to the headers of TensorRT 8.6, or of 10 or later.",
            )
        parts.append(found.group(1))
    return ".".join(parts)


def source_hash() -> str:
    """SHA-256 over names and hashes of all that the library is built from, as CMakeLists.txt computes it."""
    files = [FOLDER / "CMakeLists.txt"]
    files += [path for folder in SOURCES for path in folder.iterdir() if path.suffix in SUFFIXES]
    names = {path.relative_to(FOLDER).as_posix(): path for path in files}
    lines = [f"{name} {hashlib.sha256(names[name].read_bytes()).hexdigest()}\n" for name in sorted(names)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def cached(headers: Headers, architectures: Sequence[str] = ARCHITECTURES) -> Path:
    """Where the library of the present sources for these headers and architectures is kept, built or not."""
    parts = "\n".join((source_hash(), headers.version, *architectures))
    return cache_folder() / "plugins" / hashlib.sha256(parts.encode()).hexdigest()[:16] / LIBRARY


def built(version: str) -> list[Path]:
    """Libraries in the cache of the present sources for a TensorRT version, newest first.

    Args:
        version: TensorRT's, such as ``8.6.1``; its first two numbers must be the headers'.
    """
    found = sorted(
        (cache_folder() / "plugins").glob(f"*/{LIBRARY}"), key=lambda path: path.stat().st_mtime, reverse=True
    )
    wanted, hash_ = version.split(".")[:2], source_hash()
    known = ((path, describe(path)["build"]) for path in found)
    return [
        path
        for path, one in known
        if one["source_hash"] == hash_ and one["tensorrt"].split(".")[:2] == wanted
    ]


def build(headers: Headers, *, architectures: Sequence[str] = ARCHITECTURES, jobs: int | None = None) -> Path:
    """The library, built when the cache has none for these sources, headers and architectures.

    Args:
        headers: of :func:`find_headers`.
        architectures: compute capabilities without the dot, such as ``90``.
        jobs: compilations at a time; None for as many as there are cores.

    Raises:
        BackendError: when CMake or a compiler is missing, or the build fails.
    """
    target = cached(headers, architectures)
    if target.is_file():
        return target
    cmake = shutil.which("cmake")
    if cmake is None:
        raise BackendError(
            "the plugin library is built with CMake, which is not on PATH", hint="Run `pip install cmake`."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    logger.info("building %s for TensorRT %s, sm_%s", LIBRARY, headers.version, ", sm_".join(architectures))
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        root = headers.folder.parent if headers.folder.name == "include" else headers.folder
        configure = [cmake, "-S", str(FOLDER), "-B", folder, f"-DTENSORRT_ROOT={root}"]
        configure += [
            f"-DTENSORRT_INCLUDE={headers.folder}",
            f"-DLINEAHEAD_ARCHITECTURES={';'.join(architectures)}",
        ]
        if shutil.which("ninja"):
            configure += ["-G", "Ninja"]
        _run(configure, "configured")
        _run([cmake, "--build", folder, "--parallel", str(jobs or os.cpu_count() or 1)], "built")
        os.replace(Path(folder) / LIBRARY, target)
    return target


def _run(command: list[str], what: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode == 0:
        return
    output = result.stdout + result.stderr
    logger.info("%s", output)
    found = re.search(r"CMake Error at [^\n]*\n\s*(.+?)\n(?:\n\n|Call Stack|\Z)", output, re.DOTALL)
    lines = [line for line in output.splitlines() if re.search(r"\berror\b", line, re.IGNORECASE)]
    reason = " ".join(found.group(1).split()) if found else (lines or ["no message"])[0].strip()
    raise BackendError(
        f"the plugin library could not be {what}: {reason}",
        hint="Run `lineahead -v plugin build` for the whole output; CUDA 12 and a C++17 compiler are needed.",
    )


def describe(library: Path) -> dict[str, Any]:
    """What a built library says of itself: ``augmented_attention/tensorrt.py``'s description, and ``build``.

    Raises:
        BackendError: when there is no such file, or it is not this library.
    """
    hint = "Build it: `lineahead plugin build`."
    if not library.is_file():
        raise BackendError(f"{library}: no such file", hint=hint)
    try:
        ask = ctypes.CDLL(str(library)).lineahead_plugin_description
    except (OSError, AttributeError) as error:
        raise BackendError(f"{library}: not a lineahead plugin library: {error}", hint=hint) from error
    ask.restype = ctypes.c_char_p
    found: dict[str, Any] = json.loads(ask().decode())
    return found
