"""The operator's native CPU kernel for ONNX Runtime: compiled on first use, kept in a cache. No torch.

Sources are in ``csrc/cpu``. A session takes the kernel by ``register_custom_ops_library``; then
ONNX Runtime prefers it to the function body that the model file carries: one file runs with and without it.
"""

import hashlib
import logging
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from lineahead.errors import BackendError

logger = logging.getLogger(__name__)

Implementation = Literal["auto", "native", "function"]

VARIABLE = "LINEAHEAD_OPERATOR"
LIBRARY = "liblineahead_ort_cpu.so"
SOURCES = Path(__file__).parent / "csrc" / "cpu"
MAIN = "ort_op.cpp"
COMPILERS = ("c++", "g++", "clang++")
FLAGS = (
    "-std=c++17",
    "-O3",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-Wno-psabi",
)
TUNING = (("-march=native",), ("-mcpu=native",), ())  # the first that the compiler accepts


@dataclass(frozen=True, kw_only=True)
class Status:
    """What is known about the native kernel on this machine, without building it.

    Attributes:
        path: the compiled library, or None when it has not been built.
        compiler: the compiler that would build it, or None.
        reason: why there can be no library here, or None.
    """

    path: Path | None
    compiler: str | None
    reason: str | None

    def __str__(self) -> str:
        if self.path is not None:
            return f"built: {self.path}"
        return self.reason or f"compiled on first use by {self.compiler}"


def resolve(implementation: Implementation | None = None) -> Path | None:
    """The library to register for `implementation`, or None to run the function body; says which in the log.

    Args:
        implementation: ``native`` insists on the kernel, ``function`` refuses it, ``auto`` takes it where it
            can be built; None reads the environment variable LINEAHEAD_OPERATOR, or is ``auto`` without one.

    Raises:
        BackendError: when the name is unknown, the compilation fails, or ``native`` is not possible here.
    """
    chosen = _chosen(implementation)
    path = None if chosen == "function" else library()
    if path is not None:
        logger.info("augmented attention runs in the native kernel %s", path)
        return path
    reason = "as asked" if chosen == "function" else status().reason
    if chosen == "native":
        raise BackendError(
            f"the native CPU kernel is not available: {reason}",
            hint="Install g++ or clang++, or use 'function'.",
        )
    logger.info("augmented attention runs as an ONNX function body (%s)", reason)
    return None


def without_kernel(unknown: str, implementation: Implementation | None = None) -> None:
    """Say in the log that a graph runs as function bodies for what the kernel does not know.

    Args:
        unknown: as :func:`lacking` names it.
        implementation: as in :func:`resolve`.

    Raises:
        BackendError: when ``native`` is insisted on.
    """
    if _chosen(implementation) == "native":
        raise BackendError(
            f"the native CPU kernel has no {unknown}", hint=f"Use 'function', or 'auto' in {VARIABLE}."
        )
    logger.warning(
        "the native CPU kernel has no %s: augmented attention runs as an ONNX function body", unknown
    )


def _chosen(implementation: Implementation | None) -> str:
    chosen = implementation or os.environ.get(VARIABLE) or "auto"
    if chosen not in get_args(Implementation):
        raise BackendError(
            f"unknown operator implementation {chosen!r}",
            hint=f"Set {VARIABLE} to one of: {', '.join(get_args(Implementation))}.",
        )
    return chosen


def lacking(message: str) -> str | None:
    """What the kernel does not know, if `message` is its refusal of a graph; None for any other failure.

    The graph then runs as function bodies, which know every setting.
    """
    found = re.search(r"this library has no (\S+ '[^']*')", message)
    return found.group(1) if found else None


def library(*, build: bool = True) -> Path | None:
    """Path of the compiled kernel, building it if need be; None when there is none (:func:`status` says why).

    Args:
        build: compile when the cache has no library for these sources, this compiler and this CPU.

    Raises:
        BackendError: when the compilation fails or the cache folder cannot be written.
    """
    found = status()
    if found.path is not None or found.compiler is None or not build:
        return found.path
    return _build(found.compiler, _target(found.compiler))


def status() -> Status:
    """Whether the kernel is built, or could be, and if not, why."""
    if platform.system() not in ("Linux", "Darwin"):
        reason = f"not supported on {platform.system()}"
        return Status(path=None, compiler=None, reason=reason)
    compiler = find_compiler()
    if compiler is None:
        reason = f"no C++ compiler on PATH (looked for {', '.join(COMPILERS)})"
        return Status(path=None, compiler=None, reason=reason)
    target = _target(compiler)
    return Status(path=target if target.is_file() else None, compiler=compiler, reason=None)


def find_compiler() -> str | None:
    """Path of the C++ compiler: the environment variable CXX, or the first of c++, g++, clang++."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else COMPILERS
    return next((path for name in names if (path := shutil.which(name))), None)


def cache_folder() -> Path:
    """Where compiled kernels are kept: XDG_CACHE_HOME, or ~/.cache, /lineahead."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lineahead"


def _target(compiler: str) -> Path:
    """The library's path for the present sources, compiler and CPU."""
    digest = hashlib.sha256()
    for source in sorted([*SOURCES.glob("*.h"), *SOURCES.glob("*.cpp")]):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    stat = os.stat(compiler)
    built_by = (compiler, str(stat.st_size), str(stat.st_mtime_ns), *FLAGS)
    for part in (*built_by, platform.machine(), _cpu_flags()):
        digest.update(part.encode() + b"\0")
    return cache_folder() / digest.hexdigest()[:16] / LIBRARY


def _cpu_flags() -> str:
    """The CPU's instruction set extensions: a cache on a shared home folder serves unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; a second process waits here and then finds the library built."""
    import fcntl  # not on Windows, where `status` has refused before this

    with open(folder / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(compiler: str, target: Path) -> Path:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent):
            if not target.is_file():
                _compile(compiler, target)
    except OSError as error:
        raise BackendError(
            f"cannot write the native CPU kernel to {target.parent}: {error.strerror or error}",
            hint="Set XDG_CACHE_HOME to a writable folder.",
        ) from error
    return target


def _compile(compiler: str, target: Path) -> None:
    """Compile to a temporary name in the target's folder, then rename."""
    logger.info("compiling the native CPU kernel (once): %s", target)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        output = Path(folder) / LIBRARY
        for tuning in TUNING:
            command = [compiler, *FLAGS, *tuning, str(SOURCES / MAIN), "-o", str(output)]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode == 0:
                os.replace(output, target)
                return
    message = next((line for line in result.stderr.splitlines() if "error" in line), "no message")
    raise BackendError(
        f"{compiler} cannot compile the native CPU kernel: {message.strip()}",
        hint=f"Update the compiler (C++17 is needed), or set {VARIABLE}=function to run without the kernel.",
    )
