"""Engines of an artifact for this machine's GPU and TensorRT, each kept only if ONNX Runtime agrees."""

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lineahead.convert.tensorrt import check
from lineahead.convert.tensorrt.build import (
    BuildRequest,
    build,
    major,
    profile_shapes,
    trtexec_line,
)
from lineahead.convert.tensorrt.draft_check import compare_draft, require_agreement
from lineahead.convert.tensorrt.draft_graph import draft_graph, is_recurrent
from lineahead.convert.tensorrt.fuse import fused_text
from lineahead.convert.tensorrt.graph import engine_graph, save_for_engine
from lineahead.convert.tensorrt.outside import save_weights, take_out
from lineahead.convert.tensorrt.twin import twin
from lineahead.errors import ArtifactError, ExportError, InputError
from lineahead.plugins.augmented_attention.schema import DOMAIN, OP_TYPE
from lineahead.plugins.tensorrt.choice import LibraryChoice
from lineahead.plugins.tensorrt.cuda import CudaDevice
from lineahead.plugins.tensorrt.draft import write_names
from lineahead.plugins.tensorrt.draft_kernels import LibraryDraftKernels
from lineahead.plugins.tensorrt.engine import (
    TensorRTEngine,
    load_plugins,
    tensorrt_module,
    this_machine,
    trt_logger,
)
from lineahead.plugins.tensorrt.library import plugin_library
from lineahead.plugins.tensorrt.record import (
    CACHE,
    DRAFT,
    FOLDER,
    LIBRARY,
    PRECISIONS,
    PREFILL,
    VERIFIER,
    Bucket,
    EngineRecord,
    engine_name,
    file_hash,
    read_record,
)
from lineahead.plugins.tensorrt.weights import upload_weights, weights_name
from lineahead.recipes.files import scratch_folder
from lineahead.recipes.manifest import read_manifest

logger = logging.getLogger(__name__)

MOST_RESULTS = 64
DEFAULT_BUCKETS = ("1x1", "1x9", "1x64", "4x1", "4x9")  # 9: eight drafted tokens and the root
SOURCE, DRAFT_SOURCE = "onnx/verifier.onnx", "onnx/draft.onnx"
STAGING = ".export-"
Judge = Callable[[Path, TensorRTEngine], float]


def parse_bucket(text: str) -> Bucket:
    """A bucket from ``BATCHxNODES``.

    Raises:
        InputError: when it is not two positive numbers.
    """
    batch, _, nodes = text.partition("x")
    if not (batch.isdigit() and nodes.isdigit() and int(batch) and int(nodes)):
        raise InputError(f"bucket {text!r} is not BATCHxNODES", hint="Write, for example, --bucket 4x16.")
    return Bucket(batch=int(batch), nodes=int(nodes), results=min(int(nodes), MOST_RESULTS))


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to build.

    Attributes:
        buckets: ``BATCHxNODES``, one optimisation profile each.
        prefill: the same for an engine that reads prompts only; none without.
        optimization_level: of TensorRT's builder; 1 before TensorRT 10 and 3 from there on when None.
        cublas: let TensorRT use cuBLAS.
        detailed: keep layer names in the engine.
        fuse: use the plugin library's fused operators; when None, in fp16 before TensorRT 10.
        outside: keep large weights of verifier and prefill engines in a file that they share.
        draft: build an engine of the artifact's recurrent draft, too, if it has one.
    """

    buckets: Sequence[str] = DEFAULT_BUCKETS
    prefill: Sequence[str] = ()
    optimization_level: int | None = None
    cublas: bool = False
    detailed: bool = False
    fuse: bool | None = None
    outside: bool = False
    draft: bool = True

    def sizes(self, kind: str) -> tuple[Bucket, ...]:
        """The buckets of a kind of engine, smallest first; a draft's are the verifier's batches."""
        named = self.prefill if kind == PREFILL else self.buckets
        found = {parse_bucket(one) for one in named}
        if kind == DRAFT:
            found = {Bucket(batch=one.batch, nodes=1, results=1) for one in found}
        return tuple(sorted(found, key=lambda one: (one.batch, one.nodes)))

    @property
    def rows(self) -> tuple[int, int]:
        """Fewest and most rows that a call can have left pending, whichever engine took it."""
        nodes = [one.nodes for kind in (VERIFIER, PREFILL) for one in self.sizes(kind)]
        return min(nodes), max(nodes)


def export_tensorrt(
    artifact: Path,
    *,
    precisions: Sequence[str] = ("fp16",),
    library: Path | None = None,
    progress: Callable[[str], None] | None = None,
    options: Options = Options(),
) -> list[dict[str, Any]]:
    """Build, check and save ``tensorrt/<sm>-<version>/{verifier,prefill,draft}_<precision>.engine``.

    Beside each engine stand its record (``.json``), the graph that it was parsed from, the plugin library and
    the timing cache; beside a draft's the tokens that it can propose.

    Args:
        artifact: the artifact folder, exported to ONNX.
        precisions: ``fp32``, ``fp16``, ``bf16``.
        library: the plugin library; found in the usual places when None.
        progress: told what begins.
        options: how to build.

    Returns:
        one record per engine, with the equivalent ``trtexec`` command.

    Raises:
        ArtifactError: when the artifact has no ONNX graph, or there is no plugin library.
        BackendError: when TensorRT or a GPU is missing, or the library is too old.
        ExportError: when the graph cannot be lowered, parsed or built.
        ParityError: when an engine and ONNX Runtime disagree.
    """
    unknown = sorted(set(precisions) - set(PRECISIONS))
    if unknown:
        raise ExportError(f"unknown precision {unknown[0]!r}", hint=f"Choose from: {', '.join(PRECISIONS)}.")
    kinds = [kind for kind in (VERIFIER, PREFILL) if options.sizes(kind)]
    if options.draft and (artifact / DRAFT_SOURCE).is_file() and is_recurrent(artifact / DRAFT_SOURCE):
        kinds.append(DRAFT)
    if not (artifact / SOURCE).is_file():
        raise ArtifactError(f"{artifact}: no {SOURCE}", hint=f"Run `lineahead export onnx {artifact}`.")
    trt = tensorrt_module()
    work = _Work(artifact, trt, CudaDevice(), options, progress or logger.info)
    found = plugin_library(trt, library)
    with scratch_folder(work.folder, STAGING) as staging:
        _publish_library(found, work.folder, staging)
        load_plugins(trt, work.folder / LIBRARY)
        LibraryChoice(work.folder / LIBRARY)  # refused now rather than after the builds
        if DRAFT in kinds:
            LibraryDraftKernels(work.folder / LIBRARY)
        return [work.one(kind, precision, staging) for precision in precisions for kind in kinds]


class _Work:
    """Building the engines of one artifact."""

    def __init__(
        self, artifact: Path, trt: Any, device: CudaDevice, options: Options, report: Callable[[str], None]
    ) -> None:
        self.artifact, self.trt, self.device = artifact, trt, device
        self.options, self.report = options, report
        # At level 3 8.6 had not built a model of 2 G weights after 17 minutes.
        old = major(trt) < 10
        level = options.optimization_level
        self.level = level if level is not None else 1 if old else 3
        self.machine = this_machine(trt, device)
        self.folder = artifact / FOLDER / self.machine.folder
        self.positions = read_manifest(artifact).model.max_position

    def one(self, kind: str, precision: str, staging: Path) -> dict[str, Any]:
        """Lower, build, check and publish one engine."""
        name, graph = engine_name(kind, precision), staging / f"{kind}_{precision}.onnx"
        buckets, source = self.options.sizes(kind), self._source(kind)
        self.report(f"lower {source.name} to {precision}")
        model, judge = (self._draft if kind == DRAFT else self._verifier)(kind, precision)
        if self._fused(precision):
            self.report(fused_text(model.graph))
        weights = weights_name(precision) if self.options.outside and kind != DRAFT else ""
        inputs = _input_shapes(model)
        if weights:
            save_weights(take_out(model.graph), staging / weights, graph_sha256=file_hash(source))
        save_for_engine(model, graph)
        del model
        request = BuildRequest(
            graph=graph,
            precision=precision,
            buckets=buckets,
            rows=self.options.rows,
            cache=self.folder / CACHE,
            optimization_level=self.level,
            cublas=self.options.cublas,
            detailed=self.options.detailed,
        )
        log = trt_logger(self.trt)
        plan = build(self.trt, log, request, self.report)
        (staging / name).write_bytes(plan)
        self.report(f"compare {name} with ONNX Runtime")
        difference = judge(staging / name, TensorRTEngine(plan, self.device, trt=self.trt, log=log))
        record = self._record(kind, precision, buckets, difference, weights)
        record.write((staging / name).with_suffix(".json"))
        # Records last: an engine without one is not opened, and its weights are there before it.
        for path in sorted(staging.iterdir(), key=lambda path: (path.suffix == ".json", path.name)):
            os.replace(path, self.folder / path.name)
        self._drop_weights(precision)
        final = replace(request, graph=self.folder / graph.name)
        shapes = {
            port: profile_shapes(port, shape, buckets[0], request.rows) for port, shape in inputs.items()
        }
        path = self.folder / name
        return {
            "engine": str(path),
            "bytes": path.stat().st_size,
            "difference": difference,
            "buckets": [f"{one.batch}x{one.nodes}" for one in buckets],
            "trtexec": trtexec_line(final, path, self.folder / LIBRARY, shapes, version=major(self.trt)),
        }

    def _fused(self, precision: str) -> bool:
        """8.6 fuses little by itself; in fp32 the graph as it is has been run on a GPU."""
        if self.options.fuse is not None:
            return self.options.fuse
        return major(self.trt) < 10 and precision == "fp16"

    def _drop_weights(self, precision: str) -> None:
        """Remove weights that no engine reads any longer."""
        name, reading = weights_name(precision), set()
        for kind in (VERIFIER, PREFILL):
            with contextlib.suppress(ArtifactError):
                record = self.folder / engine_name(kind, precision)
                reading.add(read_record(record.with_suffix(".json")).weights)
        if name not in reading:
            (self.folder / name).unlink(missing_ok=True)

    def _source(self, kind: str) -> Path:
        return self.artifact / (DRAFT_SOURCE if kind == DRAFT else SOURCE)

    def _verifier(self, kind: str, precision: str) -> tuple[Any, Judge]:
        """The lowered step graph, and what judges an engine of it."""
        chains, source, buckets = kind == PREFILL, self._source(kind), self.options.sizes(kind)

        def lowered() -> Any:
            return engine_graph(source, precision, chain=chains, fused=self._fused(precision))

        model = lowered()
        window = _window(model)

        def judge(path: Path, engine: TensorRTEngine) -> float:
            weights: dict[str, int] = {}
            if self.options.outside:
                weights = upload_weights(path.with_name(weights_name(precision)), engine.tensors, self.device)
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                found = check.compare(
                    source,
                    engine,
                    self.device,
                    buckets,
                    window=window,
                    chains=chains,
                    precision=precision,
                    positions=self.positions,
                    twin=lambda *ports: twin(lowered(), Path(folder) / "twin.onnx", *ports),
                    weights=weights,
                )
            for address in weights.values():
                self.device.free(address)
            check.require(found, path.name)
            return found.difference

        return model, judge

    def _draft(self, kind: str, precision: str) -> tuple[Any, Judge]:
        """The lowered draft, and what judges an engine of it and writes its tokens beside it."""
        source, buckets = self._source(kind), self.options.sizes(kind)
        model, draft = draft_graph(source, precision, fused=self._fused(precision))

        def judge(path: Path, engine: TensorRTEngine) -> float:
            difference, agreement = compare_draft(source, draft, engine, self.device, buckets)
            found = check.Verdict(
                difference=difference, allowed=check.BOUND[precision], case="random hidden states"
            )
            check.require(found, path.name)
            require_agreement(agreement, path.name)
            self.report(f"{agreement:.0%} of {path.name}'s best candidates are those of {source.name}")
            write_names(path, draft.names)
            return difference

        return model, judge

    def _record(
        self, kind: str, precision: str, buckets: Sequence[Bucket], difference: float, weights: str
    ) -> EngineRecord:
        return EngineRecord(
            kind=kind,
            precision=precision,
            sm=self.machine.sm,
            tensorrt=self.machine.tensorrt,
            card=self.machine.card,
            plugin_sha256=file_hash(self.folder / LIBRARY),
            graph_sha256=file_hash(self._source(kind)),
            buckets=tuple(buckets),
            difference=difference,
            weights=weights,
        )


def _input_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    return {
        str(value.name): tuple(axis if isinstance(axis, int) else -1 for axis in value.shape or ())
        for value in model.graph.inputs
    }


def _window(model: Any) -> int:
    for node in model.graph:
        if (node.domain, node.op_type) == (DOMAIN, OP_TYPE) and "window" in node.attributes:
            return int(node.attributes["window"].as_int())
    return 64


def _publish_library(found: Path, folder: Path, staging: Path) -> None:
    """Copy the plugin library beside the engines."""
    target = folder / LIBRARY
    if target.is_file() and file_hash(target) == file_hash(found):
        return
    part = staging / LIBRARY
    shutil.copyfile(found, part)
    os.replace(part, target)
