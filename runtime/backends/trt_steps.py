"""Steps of a TensorRT session: prepared once per set of sizes, then one graph launch each."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from lineahead.errors import BackendError
from lineahead.plugins.step_graph import HIDDEN_STATES, LOGITS, WEIGHT
from lineahead.plugins.tensorrt.call import Sizes, fill
from lineahead.plugins.tensorrt.choice import MOST_TOP, Choice, scores_of, tokens_of
from lineahead.plugins.tensorrt.cuda import Device
from lineahead.plugins.tensorrt.engine import Engine
from lineahead.plugins.tensorrt.record import Bucket
from lineahead.runtime.backends.trt_drafts import Drafting
from lineahead.runtime.backends.trt_memory import Memory
from lineahead.runtime.session import Floats, HeldRow, Ints, StepOutput

logger = logging.getLogger(__name__)
Array = npt.NDArray[Any]
TopKeys = Callable[[], npt.NDArray[np.uint64] | None]


@dataclass(frozen=True, kw_only=True)
class Served:
    """An engine and what it serves.

    Attributes:
        engine: of the step graph.
        buckets: of its profiles, in order.
        chain: whether it reads no ancestors, and serves chains only.
        weights: device addresses of those that the engine takes as inputs.
    """

    engine: Engine
    buckets: tuple[Bucket, ...]
    chain: bool = False
    weights: Mapping[str, int] = field(default_factory=dict)


class Results:
    """Where the results of steps with the same R go.

    Attributes:
        logits: device address, ``[B, R, V]`` float32.
        hidden: device address, ``[B, R, E]`` float32.
        best: device address of the chosen tokens, one 64-bit key each.
        keys: the same on the host, ``[B, R]``.
        top: device address of the best tokens, once they were wanted.
        top_keys: the same on the host, ``[B, R, K]``.
    """

    def __init__(self, device: Device, batch: int, results: int, widths: tuple[int, int]) -> None:
        """Allocate."""
        self.shape, self.widths = (batch, results), widths
        self.logits = device.allocate(batch * results * widths[0] * 4)
        self.hidden = device.allocate(batch * results * widths[1] * 4)
        self.best = device.allocate(batch * results * 8)
        self.keys = device.pinned(batch * results * 8).view(np.uint64).reshape(batch, results)
        self.top, self.top_keys = 0, np.zeros((batch, results, 0), np.uint64)

    def hold_top(self, device: Device) -> None:
        """Allocate room for the best tokens."""
        if not self.top:
            shape = (*self.shape, min(MOST_TOP, self.widths[0]))
            size = shape[0] * shape[1] * shape[2] * 8
            self.top = device.allocate(size)
            self.top_keys = device.pinned(size).view(np.uint64).reshape(shape)


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What a step drafts before it verifies.

    Attributes:
        work: the draft's buffers for the step's batch.
        count: tokens a sequence.
    """

    work: Drafting
    count: int


class Step:
    """One set of sizes and one direction of the pending sets, with or without a draft.

    Attributes:
        sizes: of the call.
        results: where its results go.
        draft: what drafts before it verifies.
        ids: ``[B, T]`` int32, the call's tokens with those that were drafted; only with a draft.
    """

    def __init__(
        self,
        device: Device,
        engine: Engine,
        memory: Memory,
        results: Results,
        *,
        sizes: Sizes,
        side: int,
        choice: Choice | None,
        draft: Draft | None = None,
        top: bool = False,
        weights: Mapping[str, int] | None = None,
    ) -> None:
        """Prepare; nothing runs yet.

        Args:
            device: where.
            engine: that verifies.
            memory: whose state it reads and writes.
            results: where its results go.
            sizes: of the call.
            side: which pending set it reads.
            choice: of tokens on the device.
            draft: what drafts before it verifies.
            top: whether the best tokens of every result are chosen, too.
            weights: addresses of weights that the engine takes as inputs.
        """
        self.sizes, self.results, self._device = sizes, results, device
        offsets, total = sizes.offsets()
        self._host, self._block = device.pinned(total), device.allocate(total)
        self._views = sizes.views(self._host)
        self._choice, self._top = choice, top
        if top:
            results.hold_top(device)
        shapes: dict[str, tuple[int, ...]] = dict(sizes.shapes())
        for name, tensor in engine.tensors.items():
            if name.startswith(WEIGHT):
                shapes[name] = tensor.shape
            elif tensor.is_input and name not in shapes:
                shapes[name] = (
                    sizes.batch,
                    *(sizes.pending if axis < 0 else axis for axis in tensor.shape[1:]),
                )
        addresses = {name: self._block + start for name, start in offsets.items()}
        addresses |= memory.addresses(side)
        addresses |= {LOGITS: results.logits, HIDDEN_STATES: results.hidden, **(weights or {})}
        self._engine, self._shapes = engine, shapes
        self._enqueue = engine.prepare(sizes.profile, shapes, addresses)
        self._launch: Callable[[], None] | None = None
        self.draft = draft
        self._ids = addresses["input_ids"]
        self._before: Callable[[], None] | None = None
        if draft is not None:
            self._before = draft.work.prepare(self._ids, sizes.nodes, draft.count)
            shape = sizes.batch, sizes.nodes
            self.ids = device.pinned(shape[0] * shape[1] * 4).view(np.int32).reshape(shape)

    def run(self, call: Mapping[str, Array]) -> None:
        """Fill the inputs and run: directly the first time, then as a graph; waits for the end."""
        fill(self._views, call)
        if self._launch is None:
            self._work()
            self._device.synchronize()
            self._launch = self._device.capture(self._work)
        else:
            self._launch()
            self._device.synchronize()

    def replay(self) -> None:
        """Launch the recorded step again with the inputs of the last :meth:`run`; does not wait."""
        assert self._launch is not None
        self._launch()

    def layer_times(self) -> dict[str, float]:
        """Milliseconds of every layer in one run with the inputs of the last :meth:`run`."""
        return self._engine.profile_layers(self._enqueue, self.sizes.profile, self._shapes)

    def _work(self) -> None:
        self._device.upload(self._block, self._host)
        if self._before is not None:
            self._before()
            self._device.fetch(self.ids, self._ids)
        self._enqueue()
        if self._choice is not None:
            results = self.results
            rows = results.shape[0] * results.shape[1]
            self._choice.enqueue(results.logits, results.best, rows, results.widths[0], self._device)
            self._device.fetch(results.keys, results.best)
            if self._top:
                self._choose_top(self._choice)

    def _choose_top(self, choice: Choice) -> None:
        results = self.results
        rows, count = results.shape[0] * results.shape[1], results.top_keys.shape[-1]
        choice.enqueue_top(results.logits, results.top, rows, results.widths[0], count, self._device)
        self._device.fetch(results.top_keys, results.top)

    def top_keys(self) -> npt.NDArray[np.uint64] | None:
        """The best tokens of every result of the last :meth:`run`; None without a choice on the device."""
        if self._choice is None:
            return None
        if not self._top:
            self.results.hold_top(self._device)
            self._choose_top(self._choice)
            self._device.synchronize()
        return self.results.top_keys


class DeviceOutput(StepOutput):
    """A step's results, most of which stay on the device: what is asked for is fetched then."""

    _device: Device
    _results: Results
    _size: tuple[int, int]
    _tokens: npt.NDArray[np.int64] | None
    _scores: Floats | None
    _fresh: bool
    _ask: TopKeys
    _top: npt.NDArray[np.uint64] | None

    def __init__(
        self,
        device: Device,
        results: Results,
        *,
        batch: int,
        count: int,
        chosen: bool,
        ask: TopKeys = lambda: None,
    ) -> None:
        """Describe results that are on the device until the next step.

        Args:
            device: where.
            results: the buffers.
            batch: sequences that are no padding.
            count: results a sequence that are no padding.
            chosen: whether the best tokens have been fetched.
            ask: gives the best tokens of every result.
        """
        set_ = object.__setattr__
        set_(self, "_device", device)
        set_(self, "_results", results)
        set_(self, "_size", (batch, count))
        set_(self, "_tokens", tokens_of(results.keys) if chosen else None)
        set_(self, "_scores", scores_of(results.keys) if chosen else None)
        set_(self, "_fresh", True)
        set_(self, "_ask", ask)
        set_(self, "_top", None)

    def expire(self) -> None:
        """The buffers belong to the next step now."""
        object.__setattr__(self, "_fresh", False)

    def _require_fresh(self) -> None:
        if not self._fresh:
            raise BackendError(
                "results of a step were asked for after the next step", hint="Copy what is needed in time."
            )

    def _fetch(self, address: int, shape: tuple[int, ...]) -> Floats:
        self._require_fresh()
        found = np.empty(shape, np.float32)
        self._device.download(found, address)
        return found

    def _rows(self, address: int, width: int) -> Floats:
        results, (batch, count) = self._results, self._size
        found = self._fetch(address, (*results.shape, width))
        return found[:batch, :count]

    def _row(self, address: int, width: int, row: int, result: int) -> Floats:
        place = row * self._results.shape[1] + result
        return self._fetch(address + place * width * 4, (width,))

    @property
    def logits(self) -> Floats:
        """All logits, ``[B, R, V]``."""
        return self._rows(self._results.logits, self._results.widths[0])

    @property
    def hidden(self) -> "HiddenRows":  # type: ignore[override]
        """Hidden states ``[B, R, E]``, fetched by row."""
        return HiddenRows(self)

    def argmax(self, row: int, result: int) -> int:
        """Best token of one result; as :meth:`StepOutput.argmax`."""
        if self._tokens is None or self._scores is None:
            return _best(self.scores(row, result))
        score = float(self._scores[row, result])
        if not np.isfinite(score):
            raise _not_numbers(score)
        return int(self._tokens[row, result])

    def best(self, row: int, result: int, count: int) -> tuple[Ints, Floats, int] | None:
        """The best tokens, chosen on the device; as :meth:`StepOutput.best`."""
        width = self._results.widths[0]
        if not 0 < count <= min(MOST_TOP, width):
            return None
        self._require_fresh()
        if self._top is None:
            object.__setattr__(self, "_top", self._ask())
        if self._top is None:
            return None
        keys = self._top[row, result, :count]
        return tokens_of(keys), scores_of(keys), width

    def hold(self, row: int, result: int) -> HeldRow:
        """The hidden state of one result, where it is."""
        return HeldRow(output=self, row=row, result=result)

    def hidden_address(self, row: int, result: int) -> int:
        """Where on the device a hidden state is until the next call."""
        place = row * self._results.shape[1] + result
        return self._results.hidden + place * self._results.widths[1] * 4

    def scores(self, row: int, result: int) -> Floats:
        """Logits ``[V]`` of one result."""
        results = self._results
        return self._row(results.logits, results.widths[0], row, result)


class HiddenRows:
    """Hidden states on the device; indexing fetches, one row when a row is named."""

    def __init__(self, output: DeviceOutput) -> None:
        """Of a step's output."""
        self._output = output

    def __getitem__(self, index: Any) -> Floats:
        results = self._output._results
        address, width = results.hidden, results.widths[1]
        if (
            isinstance(index, tuple)
            and len(index) == 2
            and all(isinstance(i, (int, np.integer)) for i in index)
        ):
            return self._output._row(address, width, int(index[0]), int(index[1]))
        found: Floats = self._output._rows(address, width)[index]
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        found = self[:]
        return found if dtype is None else found.astype(dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """``(B, R, E)``."""
        return (*self._output._size, self._output._results.widths[1])


def _best(scores: Floats) -> int:
    best = int(scores.argmax())
    if not np.isfinite(scores[best]):
        raise _not_numbers(float(scores[best]))
    return best


def _not_numbers(score: float) -> BackendError:
    return BackendError(
        f"the model returned {score} as its best logit",
        hint="Use --precision fp32 if fp16 overflows; check the weights with `lineahead doctor`.",
    )
