"""Time of a step of a TensorRT engine by batch, nodes and context, and the share of every layer.

``python -m lineahead.runtime.bench.tensorrt_process ENGINE LIBRARY REQUEST.json`` prints one JSON object. The
request is ``{"calls": [[batch, nodes, context], ...], "repeats": 30}``; a fourth number says how many nodes
of the call before were accepted (1), a fifth how many tokens the step drafts before it verifies (0), by the
draft engine beside ``verifier_PRECISION.engine``. Any engine of a step graph will do: the state is random,
and so may be the weights.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lineahead.errors import ArtifactError
from lineahead.plugins.augmented_attention.schema import OP_TYPE
from lineahead.plugins.step_graph import HIDDEN_STATES, LENGTH_IN, LOGITS, WEIGHT
from lineahead.plugins.tensorrt.call import Sizes
from lineahead.plugins.tensorrt.choice import Choice, LibraryChoice
from lineahead.plugins.tensorrt.cuda import CudaDevice, Device
from lineahead.plugins.tensorrt.draft import SCORES, read_names
from lineahead.plugins.tensorrt.draft_kernels import LibraryDraftKernels
from lineahead.plugins.tensorrt.engine import (
    Engine,
    Tensor,
    TensorRTEngine,
    load_plugins,
    tensorrt_module,
    trt_logger,
)
from lineahead.plugins.tensorrt.record import DRAFT, VERIFIER, Bucket, read_record
from lineahead.runtime.backends.trt_drafts import Drafting, ServedDraft
from lineahead.runtime.backends.trt_memory import Memory, carried_tensors, narrowed
from lineahead.runtime.backends.trt_steps import Draft, Results, Step

COPY_BYTES = 1 << 30
DEVIATION = 0.02


class TimingDevice(Device, Protocol):
    """A device that times what is enqueued."""

    def milliseconds(self, work: Callable[[], None]) -> float:
        """What the device spends on `work`."""


def buckets_of(engine: TensorRTEngine) -> list[Bucket]:
    """What the engine's profiles serve."""
    found = []
    for largest in engine.largest_shapes(("input_ids", "output_index")):
        batch, nodes = largest["input_ids"]
        found.append(Bucket(batch=batch, nodes=nodes, results=largest["output_index"][1]))
    return found


class StepBench:
    """Steps of one engine."""

    def __init__(
        self,
        engine: Engine,
        device: TimingDevice,
        choice: Choice,
        buckets: Sequence[Bucket],
        draft: ServedDraft | None = None,
    ) -> None:
        """Of an engine, its profiles' buckets, and what drafts in its steps."""
        self._engine, self.device, self._choice, self._buckets = engine, device, choice, buckets
        self._served = draft
        tensors = engine.tensors
        self._carried = carried_tensors(tensors)
        self._widths = tensors[LOGITS].shape[-1], tensors[HIDDEN_STATES].shape[-1]
        self._random = np.random.default_rng(0)
        self._drawn: dict[tuple[tuple[int, ...], str], np.ndarray[Any, Any]] = {}
        self._weights = {name: self._weight(one) for name, one in tensors.items() if name.startswith(WEIGHT)}

    def _weight(self, tensor: Tensor) -> int:
        """Random numbers for a weight that the engine takes as an input, the same for all of one shape."""
        key = (tensor.shape, tensor.dtype)
        if key not in self._drawn:
            numbers = self._random.standard_normal(tensor.shape, np.float32) * DEVIATION
            self._drawn[key] = narrowed(numbers, tensor.dtype)
        raw = self._drawn[key]
        address = self.device.allocate(raw.nbytes)
        self.device.upload(address, raw)
        self.device.synchronize()
        return address

    def _memory(self, batch: int, nodes: int) -> Memory:
        """A state of random numbers."""
        memory = Memory(self.device, self._carried, batch=batch, most_nodes=nodes)
        for one in self._carried:
            numbers = np.abs(self._random.normal(0, 1, one.sized(batch, nodes if one.is_pending else 0)))
            raw = narrowed(numbers.astype(np.float32), one.dtype)
            self.device.upload(memory.address(one), raw)
            self.device.synchronize()
        memory.nodes = nodes
        return memory

    def measure(
        self, batch: int, nodes: int, context: int, accepted: int = 1, drafted: int = 0, *, repeats: int
    ) -> dict[str, Any]:
        """Milliseconds of a step, of its CUDA graph alone, of the draft alone, and of each layer.

        Args:
            batch: sequences.
            nodes: of each.
            context: tokens that they have.
            accepted: nodes of the call before, a chain as long as this one, that the step commits.
            drafted: tokens that it drafts.
            repeats: timed runs.

        Raises:
            StopIteration: when an engine has no such bucket.
        """
        work = self._drafting(batch) if drafted else None
        place = next(i for i, one in enumerate(self._buckets) if (one.batch, one.nodes) == (batch, nodes))
        results = self._buckets[place].results
        sizes = Sizes(engine=0, profile=place, batch=batch, nodes=nodes, results=results, pending=nodes)
        step = Step(
            self.device,
            self._engine,
            self._memory(batch, nodes),
            Results(self.device, batch, results, self._widths),
            sizes=sizes,
            side=0,
            choice=self._choice,
            draft=None if work is None else Draft(work=work, count=drafted),
            weights=self._weights,
        )
        call = {
            "input_ids": self._random.integers(0, self._widths[0], (batch, nodes)),
            "ancestors": np.broadcast_to(np.tri(nodes, dtype=np.bool_), (batch, nodes, nodes)),
            "output_index": np.tile(np.arange(results), (batch, 1)),
            "accept_index": np.tile(np.arange(accepted), (batch, 1)),
            "accept_count": np.full(batch, accepted, np.int64),
            LENGTH_IN: np.full(batch, context, np.int64),
        }
        if work is not None:
            work.begin(list(self._random.normal(0, 1, (batch, self._widths[1])).astype(np.float32)))
        for _ in range(5):
            step.run(call)
        graph = [self.device.milliseconds(step.replay) for _ in range(repeats)]
        whole = []
        for _ in range(repeats):
            start = time.perf_counter()
            step.run(call)
            whole.append((time.perf_counter() - start) * 1e3)
        draft = {} if work is None else self._draft_times(work, batch, nodes, drafted, repeats)
        layers = step.layer_times()
        plugin = sum(ms for name, ms in layers.items() if is_operator(name))
        return {
            "batch": batch, "nodes": nodes, "context": context, "accepted": accepted,
            "graph_ms": statistics.median(graph), "step_ms": statistics.median(whole),
            "layers_ms": sum(layers.values()), "plugin_ms": plugin,
            "slowest": dict(sorted(layers.items(), key=lambda one: -one[1])[:12]), "layers": len(layers),
            **draft,
        }  # fmt: skip

    def _drafting(self, batch: int) -> Drafting:
        if self._served is None:
            raise ArtifactError(
                "no draft engine beside the verifier", hint="Build it: `lineahead export tensorrt ARTIFACT`."
            )
        profile = next(i for i, one in enumerate(self._served.buckets) if one.batch == batch)
        return Drafting(self.device, self._served, batch=batch, profile=profile)

    def _draft_times(
        self, work: Drafting, batch: int, nodes: int, drafted: int, repeats: int
    ) -> dict[str, Any]:
        """Milliseconds of the draft alone, as a CUDA graph, and its engine's layers."""
        ids = self.device.allocate(batch * nodes * 4)
        drafting = work.prepare(ids, nodes, drafted)
        drafting()
        self.device.synchronize()
        launch = self.device.capture(drafting)
        times = [self.device.milliseconds(launch) for _ in range(repeats)]
        self.device.free(ids)
        layers = work.layer_times()
        return {
            "drafted": drafted,
            "draft_ms": statistics.median(times),
            "draft_layers_ms": sum(layers.values()),
            "draft_layers": len(layers),
            "draft_slowest": dict(sorted(layers.items(), key=lambda one: -one[1])[:12]),
        }


def beside(path: Path, device: CudaDevice, trt: Any, library: Path, vocabulary: int) -> ServedDraft | None:
    """The draft engine beside ``verifier_PRECISION.engine``, if there is one."""
    other = path.with_name(path.name.replace(VERIFIER, DRAFT, 1))
    if other == path or not other.is_file():
        return None
    engine = TensorRTEngine(other.read_bytes(), device, trt=trt, log=trt_logger(trt))
    return ServedDraft(
        engine=engine,
        buckets=read_record(other.with_suffix(".json")).buckets,
        kernels=LibraryDraftKernels(library),
        names=read_names(other, engine.tensors[SCORES].shape[-1], vocabulary),
    )


def copy_bandwidth(device: TimingDevice) -> float:
    """Bytes a second that a copy on the device reads and writes."""
    source, target = (device.allocate(COPY_BYTES) for _ in range(2))

    def work() -> None:
        device.copy(target, source, COPY_BYTES)

    work()
    found = statistics.median(device.milliseconds(work) for _ in range(10))
    device.free(source)
    device.free(target)
    return 2 * COPY_BYTES / found * 1e3


def is_operator(layer: str) -> bool:
    """Whether a layer of an engine is the plugin."""
    return OP_TYPE.lower() in layer.lower().replace("_", "")


def main() -> None:
    """Read the request and print ``{tensorrt, device, copy_bytes_per_second, calls}``."""
    path, library, request = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text())
    trt, device = tensorrt_module(), CudaDevice()
    load_plugins(trt, library)
    engine = TensorRTEngine(path.read_bytes(), device, trt=trt, log=trt_logger(trt))
    draft = beside(path, device, trt, library, engine.tensors[LOGITS].shape[-1])
    bench = StepBench(engine, device, LibraryChoice(library), buckets_of(engine), draft)
    found = []
    for call in request["calls"]:
        found.append(bench.measure(*call, repeats=int(request["repeats"])))
        print(
            {key: value for key, value in found[-1].items() if "slowest" not in key},
            file=sys.stderr,
            flush=True,
        )
    print(
        json.dumps(
            {
                "engine": path.name,
                "engine_bytes": path.stat().st_size,
                "tensorrt": str(trt.__version__),
                "device": device.name,
                "copy_bytes_per_second": copy_bandwidth(device),
                "calls": found,
            }
        )
    )


if __name__ == "__main__":
    main()
