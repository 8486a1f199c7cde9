"""ONNX Runtime itself: which wheel is installed, opening a graph on the wanted provider, its exceptions."""

import contextlib
import importlib.metadata
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from lineahead.errors import ArtifactError, BackendError, LineaheadError
from lineahead.runtime.backends.external_data import check_external_data

Provider = Literal["cpu", "cuda"]
PROVIDERS: dict[str, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
FLAVOURS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-training",
    "onnxruntime-openvino",
    "onnxruntime-directml",
)

logger = logging.getLogger(__name__)


def ort_flavour() -> str:
    """Name of the one installed ONNX Runtime distribution.

    Raises:
        BackendError: when there is none, or several (they overwrite each other's files, and one wins
        silently).
    """
    have = []
    for name in FLAVOURS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            importlib.metadata.version(name)
            have.append(name)
    if not have:
        raise BackendError(
            "ONNX Runtime is not installed", hint='Run `pip install "lineahead[cpu]"` or `[gpu]`.'
        )
    if len(have) > 1:
        raise BackendError(
            f"{' and '.join(have)} are both installed and overwrite each other's files",
            hint=f"Run `pip uninstall {' '.join(have)}`, then install one of them again.",
        )
    return have[0]


def library() -> Any:
    """The onnxruntime module.

    Raises:
        BackendError: as :func:`ort_flavour`.
    """
    ort_flavour()
    import onnxruntime

    return onnxruntime


def failures() -> tuple[type[Exception], ...]:
    """The exceptions that ONNX Runtime raises; they share no base class but Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = (
        "EPFail",
        "EngineError",
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "ModelLoaded",
    )
    more = ("NoModel", "NoSuchFile", "NotImplemented", "RuntimeException")
    # A bound run raises a plain RuntimeError where an unbound one raises one of these.
    return (RuntimeError, *(getattr(state, name) for name in (*names, *more) if hasattr(state, name)))


@contextlib.contextmanager
def reported(doing: str, hint: str) -> Iterator[None]:
    """Turn ONNX Runtime's exceptions into a BackendError that says what was being done."""
    try:
        yield
    except LineaheadError:
        raise
    except failures() as error:
        first = str(error).strip().splitlines()[0]
        raise BackendError(f"{doing}: {first}", hint=hint) from error


_pool: list[int] = []


def share_threads(threads: int) -> None:
    """Let all graphs that are opened from now on share one pool of threads.

    Two graphs that run in turns, a model and its draft model, slow each other down otherwise: the idle one's
    threads spin on the other's cores. To be called before the first graph of the process is opened.

    Args:
        threads: in the pool; 0 lets ONNX Runtime choose.
    """
    if not _pool:
        library().set_global_thread_pool_sizes(threads, 1)
        _pool.append(threads)


def open_graph(path: Path, *, provider: Provider, threads: int, kernels: Path | None = None) -> Any:
    """An `InferenceSession` on exactly the provider that was asked for.

    Args:
        path: the ONNX file.
        provider: ``cpu`` or ``cuda``.
        threads: intra-operator threads; 0 lets ONNX Runtime choose.
        kernels: library of operator kernels to register; without it the function bodies in the file run.

    Raises:
        ArtifactError: when the file is missing, or reads its weights from elsewhere than beside it.
        BackendError: when the provider is not there or the graph cannot be loaded.
    """
    ort = library()
    if not path.is_file():
        raise ArtifactError(f"{path}: no such graph", hint="Run `lineahead export onnx` on the artifact.")
    if provider not in PROVIDERS:
        raise BackendError(f"unknown provider {provider!r}", hint=f"Choose one of: {', '.join(PROVIDERS)}.")
    check_external_data(path)
    wanted = PROVIDERS[provider]
    options = ort.SessionOptions()
    if _pool:
        options.use_per_session_threads = False
    else:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    options.log_severity_level = 3
    with reported(f"{path}: ONNX Runtime {ort.__version__} cannot load it", "Export the artifact again."):
        if kernels is not None:
            options.register_custom_ops_library(str(kernels))
        chosen = [wanted] if provider == "cpu" else [wanted, PROVIDERS["cpu"]]
        if wanted not in ort.get_available_providers():
            raise BackendError(
                f"{ort_flavour()} {ort.__version__} has no {wanted}",
                hint="Install `lineahead[gpu]` in a fresh environment.",
            )
        if provider == "cuda" and hasattr(ort, "preload_dlls"):
            ort.preload_dlls()
        session = ort.InferenceSession(str(path), options, providers=chosen)
    if session.get_providers()[0] != wanted:
        raise BackendError(
            f"{path}: asked for {wanted}, ONNX Runtime fell back to {session.get_providers()[0]}",
            hint="Check the GPU driver and the CUDA libraries: `lineahead doctor`.",
        )
    return session
