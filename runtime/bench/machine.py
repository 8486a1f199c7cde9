"""What a measurement ran on, and the memory that it took."""

import os
import platform
import re
from pathlib import Path
from typing import Any

from lineahead.errors import ArtifactError, InputError
from lineahead.plugins.tensorrt.loading import engine_path
from lineahead.plugins.tensorrt.record import VERIFIER, Machine, read_record
from lineahead.runtime.artifact import Artifact
from lineahead.runtime.bench.bandwidth import read_bandwidth_gb_s

TENSORRT = "tensorrt"


def machine(threads: int, *, gpu: bool) -> dict[str, Any]:
    """The processor and what its memory gives; the GPU and what a copy there moves, too, if one is measured.

    Args:
        threads: of the measurement.
        gpu: whether a GPU is measured.

    Raises:
        BackendError: when there is no GPU, or no cuda-python.
    """
    found: dict[str, Any] = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "read_bandwidth_gb_s": read_bandwidth_gb_s(threads),
    }
    if gpu:
        from lineahead.plugins.tensorrt.cuda import CudaDevice
        from lineahead.runtime.bench.tensorrt_process import copy_bandwidth

        device = CudaDevice()
        found |= {"gpu": device.name, "copy_bandwidth_gb_s": copy_bandwidth(device) / 1e9}
    return found


def engine_machine(backend: str) -> Machine | None:
    """Whose engines the backend opens here; None for ONNX Runtime.

    Args:
        backend: ``onnxruntime`` or ``tensorrt``.

    Raises:
        BackendError: when TensorRT or a GPU is wanted and missing.
    """
    if backend != TENSORRT:
        return None
    from lineahead.plugins.tensorrt.cuda import CudaDevice
    from lineahead.plugins.tensorrt.engine import tensorrt_module, this_machine

    return this_machine(tensorrt_module(), CudaDevice())


def graph_bytes(artifact: Artifact, precision: str, engines: Machine | None = None) -> int:
    """Bytes of a graph with its weights, which a step reads once.

    Args:
        artifact: the folder.
        precision: of the graph.
        engines: take the graph that this machine's engine was parsed from.

    Raises:
        ArtifactError: when there is none.
    """
    if engines is None:
        return _bytes(artifact.graph(precision))
    engine = _engine(artifact, precision, engines)
    weights = read_record(engine.with_suffix(".json")).weights
    outside = engine.with_name(weights).stat().st_size if weights else 0
    return _bytes(engine.with_suffix(".onnx")) + outside


def _bytes(graph: Path) -> int:
    return sum(file.stat().st_size for file in graph.parent.glob(f"{graph.name}*"))


def _engine(artifact: Artifact, precision: str, engines: Machine) -> Path:
    engine = engine_path(artifact.folder, engines, VERIFIER, precision)
    if not engine.is_file():
        raise ArtifactError(
            f"{artifact.folder}: no {precision} engine",
            hint=f"Run `lineahead export tensorrt {artifact.folder} --precision {precision}`.",
        )
    return engine


def processor() -> str:
    """The processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        if names:
            return names[0].partition(":")[2].strip()
    return platform.processor() or platform.machine()


def resident_megabytes(process: int) -> float:
    """Resident memory of a process and its children, in MB (Linux).

    Raises:
        InputError: when there is no such process.
    """
    total, waiting = 0, [process]
    while waiting:
        folder = Path("/proc") / str(waiting.pop())
        status = _content(folder / "status")
        if not status and folder.name == str(process):
            raise InputError(f"no process {process}", hint="Give --pid the server's.")
        total += sum(map(int, re.findall(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)))
        for task in folder.glob("task/*/children"):
            waiting += map(int, _content(task).split())
    return total * 1024 / 1e6


def _content(path: Path) -> str:
    """A file's text; empty when its process or thread has just ended."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
