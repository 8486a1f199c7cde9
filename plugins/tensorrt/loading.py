"""Opening an engine of an artifact, if it is for this GPU, TensorRT and plugin library."""

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lineahead.errors import ArtifactError, BackendError
from lineahead.plugins.step_graph import LOGITS
from lineahead.plugins.tensorrt.choice import Choice, LibraryChoice
from lineahead.plugins.tensorrt.cuda import CudaDevice, Device
from lineahead.plugins.tensorrt.draft import SCORES, read_names
from lineahead.plugins.tensorrt.draft_kernels import DraftKernels, LibraryDraftKernels
from lineahead.plugins.tensorrt.engine import (
    Engine,
    Tensor,
    TensorRTEngine,
    load_plugins,
    tensorrt_module,
    this_machine,
    trt_logger,
)
from lineahead.plugins.tensorrt.record import (
    DRAFT,
    FOLDER,
    LIBRARY,
    PRECISIONS,
    PREFILL,
    VERIFIER,
    EngineRecord,
    Machine,
    engine_name,
    file_hash,
    read_record,
)
from lineahead.plugins.tensorrt.weights import require_weights, upload_weights

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A loaded engine.

    Attributes:
        engine: ready to run.
        device: where.
        record: what it is.
        path: its file.
        choice: token choice on the device, of the same plugin library.
        chain: whether it serves chains only.
        weights: device addresses of those that it takes as inputs.
    """

    engine: TensorRTEngine
    device: CudaDevice
    record: EngineRecord
    path: Path
    choice: Choice
    chain: bool = False
    weights: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class OpenedDraft:
    """A loaded draft engine.

    Attributes:
        engine: ready to run.
        record: what it is.
        path: its file.
        kernels: of the same plugin library.
        names: ``[V']`` int32, the tokens that its scores are of.
    """

    engine: TensorRTEngine
    record: EngineRecord
    path: Path
    kernels: DraftKernels
    names: npt.NDArray[np.int32]


def engine_path(artifact: Path, machine: Machine, kind: str, precision: str) -> Path:
    """Where an artifact keeps the engine for a machine."""
    return artifact / FOLDER / machine.folder / engine_name(kind, precision)


def require_engine(artifact: Path, machine: Machine, kind: str, precision: str) -> tuple[Path, EngineRecord]:
    """The engine for this machine, checked without loading it.

    Raises:
        ArtifactError: when there is none, or it was built with another plugin library.
        BackendError: when the precision is not TensorRT's.
    """
    if precision not in PRECISIONS:
        raise BackendError(
            f"the TensorRT backend has no precision {precision!r}",
            hint=f"Choose one of: {', '.join(PRECISIONS)}.",
        )
    path = engine_path(artifact, machine, kind, precision)
    if not path.is_file():
        others = sorted((artifact / FOLDER).glob(f"*/{path.name}"))
        found = f"; there is one for {others[0].parent.name}" if others else ""
        raise ArtifactError(
            f"{artifact}: no {kind} engine in {precision} for {machine.folder}{found}",
            hint=f"Run `lineahead export tensorrt {artifact} --precision {precision}`, or pass --rebuild.",
        )
    record = read_record(path.with_suffix(".json"))
    library = path.parent / LIBRARY
    record.require(machine, file_hash(library) if library.is_file() else "missing", path)
    if record.weights:
        require_weights(path.with_name(record.weights), record.graph_sha256)
    return path, record


def earlier_record(artifact: Path, machine: Machine, precision: str) -> EngineRecord | None:
    """How a verifier was built before, here or, failing that, on another machine."""
    name = Path(engine_name(VERIFIER, precision)).with_suffix(".json")
    records = sorted(
        (artifact / FOLDER).glob(f"*/{name}"),
        key=lambda path: (path.parent.name != machine.folder, path),
    )
    for path in records:
        with contextlib.suppress(ArtifactError):
            return read_record(path)
    return None


def open_engines(
    artifact: Path, precision: str, *, rebuild: Callable[[EngineRecord | None], None] | None = None
) -> list[Opened]:
    """Load an artifact's verifier, and its engine for prompts if there is one.

    Args:
        artifact: the folder.
        precision: ``fp32``, ``fp16`` or ``bf16``.
        rebuild: called with the earlier verifier's record when none fits; then the one that it built is
            loaded.

    Raises:
        ArtifactError: when there is none that fits, and nothing rebuilds it.
        BackendError: when TensorRT, cuda-python or a GPU is missing.
    """
    trt, device = tensorrt_module(), CudaDevice()
    machine = this_machine(trt, device)
    try:
        found = [require_engine(artifact, machine, VERIFIER, precision)]
    except ArtifactError as error:
        if rebuild is None:
            raise
        logger.warning("%s; building it again", error)
        rebuild(earlier_record(artifact, machine, precision))
        found = [require_engine(artifact, machine, VERIFIER, precision)]
    if engine_path(artifact, machine, PREFILL, precision).is_file():
        found.append(require_engine(artifact, machine, PREFILL, precision))
    library = found[0][0].parent / LIBRARY
    load_plugins(trt, library)
    log, choice = trt_logger(trt), LibraryChoice(library)
    engines = [TensorRTEngine(path.read_bytes(), device, trt=trt, log=log) for path, _ in found]
    weights = shared_weights([(record, path.parent) for path, record in found], engines, device)
    return [
        Opened(
            engine=engine,
            device=device,
            record=record,
            path=path,
            choice=choice,
            chain=record.kind == PREFILL,
            weights=addresses,
        )
        for (path, record), engine, addresses in zip(found, engines, weights, strict=True)
    ]


def shared_weights(
    found: Sequence[tuple[EngineRecord, Path]], engines: Sequence[Engine], device: Device
) -> list[dict[str, int]]:
    """Weights on the device for each engine, a file only once.

    Args:
        found: each engine's record and folder.
        engines: the engines.
        device: where.

    Raises:
        ArtifactError: when a file is missing or damaged, or lacks a weight.
    """
    wanted: dict[Path, dict[str, Tensor]] = {}
    for (record, folder), engine in zip(found, engines, strict=True):
        if record.weights:
            wanted.setdefault(folder / record.weights, {}).update(engine.tensors)
    on_device = {path: upload_weights(path, tensors, device) for path, tensors in wanted.items()}
    return [on_device[folder / record.weights] if record.weights else {} for record, folder in found]


def open_draft(artifact: Path, precision: str, verifier: Opened) -> OpenedDraft | None:
    """Load an artifact's draft engine beside its verifier; None when it has none that fits, which is logged.

    Args:
        artifact: the folder.
        precision: ``fp32``, ``fp16`` or ``bf16``.
        verifier: the opened engine that will verify.

    Raises:
        ArtifactError: when a file of it is missing.
        BackendError: when TensorRT cannot read it.
    """
    trt = tensorrt_module()
    machine = this_machine(trt, verifier.device)
    if not engine_path(artifact, machine, DRAFT, precision).is_file():
        return None
    try:
        path, record = require_engine(artifact, machine, DRAFT, precision)
    except ArtifactError as error:
        logger.warning("%s; going on without it", error)
        return None
    engine = TensorRTEngine(path.read_bytes(), verifier.device, trt=trt, log=trt_logger(trt))
    count, vocabulary = engine.tensors[SCORES].shape[-1], verifier.engine.tensors[LOGITS].shape[-1]
    return OpenedDraft(
        engine=engine,
        record=record,
        path=path,
        kernels=LibraryDraftKernels(path.parent / LIBRARY),
        names=read_names(path, count, vocabulary),
    )
