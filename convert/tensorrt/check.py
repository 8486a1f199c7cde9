"""Whether an engine says what the exported graph says in ONNX Runtime, on the script that judges exports."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lineahead.convert.onnx.rollout import Array, Backend, Case, Turn, cases, run
from lineahead.errors import BackendError, ExportError, ParityError, needs_package
from lineahead.plugins.step_graph import CALL_INPUTS, LENGTH_IN, LENGTH_OUT
from lineahead.plugins.tensorrt.call import CALL_NAMES, Sizes, choose, fill
from lineahead.plugins.tensorrt.cuda import Device
from lineahead.plugins.tensorrt.engine import BYTES, Engine, Tensor
from lineahead.plugins.tensorrt.record import Bucket

logger = logging.getLogger(__name__)

INPUT_OF = {"present": "past", "pending_out": "pending"}
# Measured with TensorRT 8.6.1 on an H100: fp32 1.3e-5 (stories15M, SmolLM2-135M), fp16 0.021 and 0.062.
# bf16 is chosen.
BOUND = {"fp32": 2e-4, "fp16": 1e-1, "bf16": 3e-1}
# Where the graph itself, in ONNX Runtime, is far from float32 in 16 bits, an engine may be some times as far.
# At late positions SmolLM2-135M's is by 0.05, fused by 0.125; angles in 16 bits make it 1.9.
SLACK = 3.0
LATE = 8192
Twin = Callable[[Sequence[str], Sequence[str]], Backend]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How an engine did in the case in which it did worst.

    Attributes:
        difference: largest of logits, hidden states and states, scaled as in ``convert.onnx.parity``.
        allowed: how much it may be in that case.
        case: the case.
    """

    difference: float
    allowed: float
    case: str


def compare(
    graph: Path,
    engine: Engine,
    device: Device,
    buckets: Sequence[Bucket],
    *,
    window: int,
    chains: bool = False,
    precision: str,
    positions: int | None = None,
    twin: Twin | None = None,
    weights: Mapping[str, int] | None = None,
) -> Verdict:
    """Run the script that judges exports on an engine and on ONNX Runtime.

    Args:
        graph: the exported ONNX file.
        engine: what was built from it.
        device: where it runs.
        buckets: of its profiles.
        window: of the converted layers; trees are tried at its bounds.
        chains: judge by chains alone.
        precision: of the engine.
        positions: how many the model has, if that is limited. The first case runs a second time at the last
            of them, or the 8,192nd: angles of rotary embeddings in 16 bits pass at the first positions.
        twin: gives the graph that the engine was built from as a function of arrays. Asked only when the
            engine exceeds its bound: a case that is as hard for the graph itself says nothing of TensorRT.
        weights: device addresses of those that the engine takes as inputs.

    Raises:
        BackendError: when ONNX Runtime is missing.
        ExportError: when no call of the script fits the buckets.
    """
    missing = "the engine is checked against ONNX Runtime, which is not installed"
    with needs_package(missing, 'Run `pip install "lineahead[cpu]"`.', BackendError):
        import onnxruntime
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]
    outputs = [port.name for port in session.get_outputs()]
    vocabulary = int(session.get_outputs()[0].shape[-1])
    empty = [
        np.zeros([1, *(axis if isinstance(axis, int) else 0 for axis in port.shape[1:])], np.float32)
        for port in session.get_inputs()
        if port.name not in CALL_NAMES
    ]

    def reference(arrays: Sequence[Array]) -> Sequence[Array]:
        found: Sequence[Array] = session.run(None, dict(zip(names, arrays, strict=True)))
        return found

    judged = engine_backend(engine, device, buckets, names, outputs, weights)
    largest = max(one.nodes for one in buckets)
    script = cases((window,), vocabulary)
    if chains:  # the first case is a prompt in chunks, then single nodes
        script = [
            Case(name=script[0].name, turns=[one for one in script[0].turns if one.tokens.shape[1] > 1])
        ]
    fitting = [case for one in script if (case := fitted(one, buckets)) is not None]
    if not fitting:
        raise ExportError(
            f"no call of the script fits an engine of at most {largest} nodes, so it cannot be judged",
            hint="Build a larger bucket, too: `--bucket 1x8`.",
        )
    left_out = sorted({one.name for one in script} - {one.name for one in fitting})
    if left_out:
        logger.info("not judged, since no bucket is large enough: %s", ", ".join(left_out))
    late = min(positions or LATE, LATE) - fitting[0].nodes
    if late > 0:
        fitting.append(replace(fitting[0], start=late))
    found, own = [], None
    for case in fitting:
        expected, allowed = list(run(reference, case, empty)), BOUND[precision]
        difference = _furthest(expected, judged, case, empty)
        if twin is not None and allowed < difference < np.inf:
            own = own or twin(names, outputs)
            spread = _furthest(expected, own, case, empty)
            if spread < np.inf:  # a graph that overflows says nothing of how far an engine may be
                allowed = max(allowed, SLACK * spread)
        where = f"{case.name}, from position {case.start}"
        logger.info("%s: differs by %.1e, %.1e is allowed", where, difference, allowed)
        found.append(Verdict(difference=difference, allowed=allowed, case=where))
    return max(found, key=lambda one: one.difference / one.allowed)


def _furthest(
    expected: Sequence[Sequence[Array]], judged: Backend, case: Case, empty: Sequence[Array]
) -> float:
    """Largest scaled difference of any call's results."""
    calls = zip(expected, run(judged, case, empty), strict=True)
    return max(scaled_error(*pair) for wanted, got in calls for pair in zip(wanted, got, strict=True))


def fitted(case: Case, buckets: Sequence[Bucket]) -> Case | None:
    """A case in calls that the buckets can take, longer chains in parts; None when that cannot be."""
    turns: list[Turn] = []
    for turn in case.turns:
        batch, nodes = turn.tokens.shape
        largest = max((one.nodes for one in buckets if one.batch >= batch), default=0)
        if nodes <= largest:
            turns.append(turn)
        elif largest and all(path == [*range(nodes)] for path in turn.accepted):
            for start in range(0, nodes, largest):
                part = slice(start, min(start + largest, nodes))
                size = part.stop - start
                turns.append(
                    Turn(
                        tokens=turn.tokens[:, part],
                        ancestors=turn.ancestors[:, part, part],
                        accepted=[[*range(size)] for _ in range(batch)],
                    )
                )
        else:
            return None
    return replace(case, turns=turns)


def scaled_error(expected: Array, got: Array) -> float:
    """Largest absolute difference; relative to the largest expected value where that exceeds one."""
    if expected.shape != got.shape or not np.isfinite(got).all():
        return float("inf")
    return float(np.abs(expected - got).max(initial=0) / max(1.0, np.abs(expected).max(initial=0)))


def require(found: Verdict, name: str) -> None:
    """Refuse an engine that is not the graph.

    Raises:
        ParityError: with the difference.
    """
    if not found.difference <= found.allowed:
        raise ParityError(
            f"{name}: differs from ONNX Runtime by {found.difference:.1e} ({found.case}), "
            f"more than {found.allowed:.1e}",
            hint="Nothing was saved. Try --precision fp32; report it with the model's config.json.",
        )


def engine_backend(
    engine: Engine,
    device: Device,
    buckets: Sequence[Bucket],
    names: Sequence[str],
    outputs: Sequence[str],
    weights: Mapping[str, int] | None = None,
) -> Backend:
    """An engine as a function of arrays, in the order of the exported graph's inputs and outputs."""

    def backend(arrays: Sequence[Array]) -> Sequence[Array]:
        given = dict(zip(names, arrays, strict=True))
        batch, nodes = given["input_ids"].shape
        results = given["output_index"].shape[1]
        place = choose(buckets, batch, nodes, results)
        bucket = buckets[place]
        previous = max(
            (array.shape[2] for name, array in given.items() if name.startswith("pending.")), default=0
        )
        least = min(one.nodes for one in buckets)
        sizes = Sizes(
            engine=0,
            profile=place,
            batch=bucket.batch,
            nodes=bucket.nodes,
            results=bucket.results,
            pending=max(previous, least, given["accept_index"].shape[1]),
        )
        found = _Run(engine, device, sizes, weights or {}).run(given)
        found[LENGTH_OUT] = given[LENGTH_IN] + given["accept_count"]
        return [_cut(name, found[name], batch, nodes, results) for name in outputs]

    return backend


def _cut(name: str, array: Array, batch: int, nodes: int, results: int) -> Array:
    if name.startswith("pending_out."):
        return array[:batch, :, :nodes]
    return array[:batch, :results] if name in ("logits", "hidden_states") else array[:batch]


class _Run:
    """One run with buffers of its own."""

    def __init__(self, engine: Engine, device: Device, sizes: Sizes, weights: Mapping[str, int]) -> None:
        self.engine, self.device, self.sizes, self.weights = engine, device, sizes, weights
        self.addresses: dict[str, int] = {}

    def run(self, given: dict[str, Array]) -> dict[str, Array]:
        """Upload, run, download, free."""
        offsets, total = self.sizes.offsets()
        block = np.zeros(total, np.uint8)
        fill(self.sizes.views(block), given)
        start = self._upload("", block)
        self.addresses |= {name: start + offset for name, offset in offsets.items()}
        shapes, kept = dict(self.sizes.shapes()), [block]
        for name, tensor in self.engine.tensors.items():
            if name in self.weights:
                shapes[name] = tensor.shape
            elif tensor.is_input and name not in CALL_INPUTS and name != LENGTH_IN:
                shapes[name] = self._shape(tensor.shape, self.sizes.pending)
                padded = np.zeros(shapes[name], np.float32)
                padded[tuple(slice(0, size) for size in given[name].shape)] = given[name]
                kept.append(_encode(padded, tensor.dtype))
                self.addresses[name] = self._upload(name, kept[-1])
        found: dict[str, tuple[Array, Any]] = {}
        for name, tensor in self.engine.tensors.items():
            if not tensor.is_input:
                shape = self._output_shape(name, tensor)
                raw = np.zeros(int(np.prod(shape)) * BYTES[tensor.dtype], np.uint8)
                self.addresses[name] = self.device.allocate(raw.nbytes)
                found[name] = raw, (shape, tensor.dtype)
        self.engine.prepare(self.sizes.profile, shapes, {**self.addresses, **self.weights})()
        for name, (raw, _) in found.items():
            self.device.download(raw, self.addresses[name])
        for address in {*self.addresses.values()} - {start + one for one in offsets.values() if one}:
            self.device.free(address)
        return {name: _decode(raw, kind).reshape(shape) for name, (raw, (shape, kind)) in found.items()}

    def _upload(self, name: str, array: Array) -> int:
        address = self.device.allocate(array.nbytes)
        self.device.upload(address, array)
        self.device.synchronize()
        return address

    def _output_shape(self, name: str, tensor: Tensor) -> tuple[int, ...]:
        """From the sizes of the call and the carried inputs: an engine's own word is of its first profile."""
        head, _, tail = name.partition(".")
        if head in INPUT_OF:
            return self._shape(self.engine.tensors[f"{INPUT_OF[head]}.{tail}"].shape, self.sizes.nodes)
        return (self.sizes.batch, self.sizes.results, tensor.shape[-1])

    def _shape(self, shape: Sequence[int], rows: int) -> tuple[int, ...]:
        return (self.sizes.batch, *(rows if axis < 0 else axis for axis in shape[1:]))


def _encode(array: Array, dtype: str) -> Array:
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.ascontiguousarray(array, np.dtype(dtype))


def _decode(raw: Array, dtype: str) -> Array:
    if dtype == "bfloat16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return raw.view(np.dtype(dtype)).astype(np.float32)
