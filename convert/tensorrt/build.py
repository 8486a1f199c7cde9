"""TensorRT's builder: a parsed graph, one optimisation profile per bucket, a timing cache, an engine."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lineahead.convert.tensorrt.types import WIDE_MARK
from lineahead.errors import ExportError
from lineahead.plugins.step_graph import CALL_INPUTS, LENGTH_IN, WEIGHT
from lineahead.plugins.tensorrt.record import Bucket

logger = logging.getLogger(__name__)

Report = Callable[[str], None]
Shape = tuple[int, ...]
WORKSPACE = 4 << 30
BEAT = 30.0  # seconds


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What to build.

    Attributes:
        graph: ONNX file with bare operator nodes.
        precision: ``fp32``, ``fp16`` or ``bf16``; the graph has its types already.
        buckets: one optimisation profile each.
        rows: fewest and most rows that a previous call can have left.
        cache: file of kernel timings, read and written.
        optimization_level: 0 to 5, higher looks longer for kernels.
        cublas: let TensorRT 8.6 use cuBLAS 12, which must then be installed.
        detailed: keep layer names, for profiles.
    """

    graph: Path
    precision: str
    buckets: Sequence[Bucket]
    rows: tuple[int, int]
    cache: Path
    optimization_level: int = 3
    cublas: bool = False
    detailed: bool = False


def major(trt: Any) -> int:
    """TensorRT's major version."""
    return int(str(trt.__version__).partition(".")[0])


def build(trt: Any, log: Any, request: BuildRequest, report: Report) -> Any:
    """The serialised engine.

    Raises:
        ExportError: when TensorRT cannot parse or build it.
    """
    builder = trt.Builder(log)
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, log)
    report(f"parse {request.graph.name} with TensorRT {trt.__version__}")
    if not parser.parse_from_file(str(request.graph)):
        problems = "; ".join(str(parser.get_error(i)) for i in range(min(3, parser.num_errors)))
        raise ExportError(
            f"TensorRT {trt.__version__} cannot parse the graph: {' '.join(problems.split())}",
            hint="Check that the plugin library was built for this TensorRT; see docs/tensorrt.md.",
        )
    config = builder.create_builder_config()
    _configure(trt, config, network, request)
    for bucket in request.buckets:
        profile = builder.create_optimization_profile()
        for i in range(network.num_inputs):
            tensor = network.get_input(i)
            profile.set_shape(
                tensor.name, *profile_shapes(tensor.name, tuple(tensor.shape), bucket, request.rows)
            )
        config.add_optimization_profile(profile)
    report(f"build {len(request.buckets)} profiles in {request.precision}")
    with _timings(trt, config, request.cache), _progress(trt, config, report):
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ExportError(
            f"TensorRT {trt.__version__} could not build the engine",
            hint="Run again with -v for its messages.",
        )
    return plan


def _network_flags(trt: Any) -> int:
    flags = trt.NetworkDefinitionCreationFlag
    if major(trt) >= 10:  # networks are of explicit batch, and take their types from the graph
        return 1 << int(flags.STRONGLY_TYPED)
    return 1 << int(flags.EXPLICIT_BATCH)


def _configure(trt: Any, config: Any, network: Any, request: BuildRequest) -> None:
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE)
    config.builder_optimization_level = request.optimization_level
    if request.detailed:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if major(trt) >= 10:
        return
    config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)
    if request.precision == "bf16":
        raise ExportError(
            f"TensorRT {trt.__version__} has no bf16", hint="Choose fp16 or fp32, or TensorRT 10."
        )
    sources = (trt.TacticSource.CUBLAS, trt.TacticSource.CUBLAS_LT) if request.cublas else ()
    config.set_tactic_sources(sum(1 << int(one) for one in sources))
    config.clear_flag(trt.BuilderFlag.TF32)
    if request.precision == "fp16":
        config.set_flag(trt.BuilderFlag.FP16)
        config.set_flag(trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS)
        _hold_wide(trt, network, wide_nodes(request.graph))


def wide_nodes(graph: Path) -> frozenset[str]:
    """Names of the nodes that lowering marked as float32 (the mean square of norms and its root)."""
    import onnx

    model = onnx.load(str(graph), load_external_data=False)
    return frozenset(
        node.name for node in model.graph.node if any(one.key == WIDE_MARK for one in node.metadata_props)
    )


def _hold_wide(trt: Any, network: Any, names: frozenset[str]) -> None:
    """Hold layers of a weakly typed network to float32; without it a large activation's square overflows.

    The rest is TensorRT's choice: types held on every layer leave it no implementation, or one in float32
    throughout (docs/notes/tensorrt.md).
    """
    untyped = (trt.LayerType.CONSTANT, trt.LayerType.SHAPE, trt.LayerType.CAST)
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if layer.name not in names or layer.type in untyped:
            continue
        layer.precision = trt.float32
        for place in range(layer.num_outputs):
            layer.set_output_type(place, trt.float32)


def profile_shapes(
    name: str, shape: Shape, bucket: Bucket, rows: tuple[int, int]
) -> tuple[Shape, Shape, Shape]:
    """Smallest, usual and largest shape of a graph input in a bucket.

    Batch and nodes are fixed, as calls are padded to them; results and the previous call's rows vary.
    """
    if name.startswith(WEIGHT):
        return shape, shape, shape
    least, most = rows
    pending = (least, bucket.nodes, most)
    results = (1, bucket.results if bucket.nodes <= bucket.results else 1, bucket.results)
    fixed: dict[str, Any] = {
        "input_ids": (bucket.batch, bucket.nodes)[: len(shape)],  # a draft's has one token a sequence
        "ancestors": (bucket.batch, bucket.nodes, bucket.nodes),
        "accept_count": (bucket.batch,),
        LENGTH_IN: (bucket.batch,),
    }
    if name in fixed:
        return fixed[name], fixed[name], fixed[name]
    if name in CALL_INPUTS:
        three = results if name == "output_index" else pending
        return tuple((bucket.batch, one) for one in three)  # type: ignore[return-value]
    if name.startswith("pending."):
        return tuple((bucket.batch, *(one if axis < 0 else axis for axis in shape[1:])) for one in pending)  # type: ignore[return-value]
    whole = (bucket.batch, *shape[1:])
    return whole, whole, whole


@contextlib.contextmanager
def _timings(trt: Any, config: Any, path: Path) -> Iterator[None]:
    """Kernel timings from earlier builds, kept for later ones."""
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    yield
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(bytes(config.get_timing_cache().serialize()))
    part.replace(path)


@contextlib.contextmanager
def _progress(trt: Any, config: Any, report: Report) -> Iterator[None]:
    """TensorRT's own progress where it tells (10 and later), else how long it has been."""
    if not hasattr(trt, "IProgressMonitor"):
        with _heartbeat(report):
            yield
        return

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._total: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._total[phase_name] = num_steps
            if parent_phase is None or parent_phase == "":
                report(f"TensorRT: {phase_name}")

        def step_complete(self, phase_name: str, step: int) -> bool:
            total = self._total.get(phase_name, 0)
            if total >= 10 and step and step % (total // 10) == 0:
                report(f"TensorRT: {phase_name}, {step} of {total}")
            return True

        def phase_finish(self, phase_name: str) -> None:
            self._total.pop(phase_name, None)

    monitor = Monitor()
    config.progress_monitor = monitor
    yield
    config.progress_monitor = None


@contextlib.contextmanager
def _heartbeat(report: Report) -> Iterator[None]:
    """Say every `BEAT` seconds that the work goes on; it has to release the interpreter's lock."""
    done, begun = threading.Event(), time.monotonic()

    def beat() -> None:
        while not done.wait(BEAT):
            report(f"TensorRT: still building, {time.monotonic() - begun:.0f} s")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def trtexec_line(
    request: BuildRequest,
    engine: Path,
    library: Path,
    shapes: dict[str, tuple[Shape, Shape, Shape]],
    *,
    version: int,
) -> str:
    """The command that builds the same engine with TensorRT's own tool, for the first bucket.

    Args:
        request: of the build.
        engine: file to write.
        library: with the plugins.
        shapes: least, usual and most, by input.
        version: major version of TensorRT.
    """

    def option(name: str, place: int) -> str:
        listed = ",".join(f"{port}:{'x'.join(map(str, three[place]))}" for port, three in shapes.items())
        return f"--{name}={listed}"

    words = ["trtexec", f"--onnx={request.graph}", f"--saveEngine={engine}"]
    words.append(f"--{'dynamicPlugins' if version >= 10 else 'plugins'}={library}")
    words += [option("minShapes", 0), option("optShapes", 1), option("maxShapes", 2)]
    words.append(f"--timingCacheFile={request.cache}")
    words.append(f"--builderOptimizationLevel={request.optimization_level}")
    if version >= 10:
        words.append("--stronglyTyped")
    else:
        words += ["--noTF32"] + (
            ["--fp16", "--precisionConstraints=prefer"] if request.precision == "fp16" else []
        )
    return " ".join(words)
