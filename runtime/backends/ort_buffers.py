"""An ONNX Runtime session's state between calls: a pool of rows, of which a call uses the first."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lineahead.errors import ArtifactError
from lineahead.plugins.softmax_attention.schema import capacity
from lineahead.plugins.step_graph import CALL_INPUTS, HIDDEN_STATES, LENGTH_IN, LOGITS
from lineahead.runtime.backends.ort_library import Provider, library
from lineahead.runtime.backends.ort_memory import Array, Memory

NODES, CAPACITY = -1, -2
TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}


@dataclass(frozen=True, kw_only=True)
class Port:
    """One carried tensor of the graph.

    Attributes:
        past: name of the input.
        present: name of the output that becomes it.
        shape: without the batch axis; NODES where the axis counts the previous call's nodes, CAPACITY where
            it counts the rows of a growing cache.
        dtype: numpy type.
    """

    past: str
    present: str
    shape: tuple[int, ...]
    dtype: type[np.generic]

    @property
    def grows(self) -> bool:
        """Whether it is a cache with a row for every token."""
        return CAPACITY in self.shape

    def sized(self, batch: int, count: int) -> tuple[int, ...]:
        """Shape for a batch and a number of nodes, or rows."""
        return (batch, *(count if axis < 0 else axis for axis in self.shape))


def carried_ports(session: Any) -> tuple[list[Port], list[Port]]:
    """The state ports and the pending ports of a step graph, from its own inputs and outputs.

    Raises:
        ArtifactError: when the graph is not a step graph.
    """
    outputs = {one.name for one in session.get_outputs()}
    have = {one.name for one in session.get_inputs()}
    missing = [name for name in (*CALL_INPUTS, LENGTH_IN) if name not in have]
    missing += [name for name in (LOGITS, HIDDEN_STATES) if name not in outputs]
    state: list[Port] = []
    pending: list[Port] = []
    for one in session.get_inputs():
        head, _, tail = one.name.partition(".")
        if head not in ("past", "pending") or one.name == LENGTH_IN:
            continue
        present = f"present.{tail}" if head == "past" else f"pending_out.{tail}"
        if present not in outputs:
            missing.append(present)
        unknown = CAPACITY if head == "past" else NODES
        shape = tuple(axis if isinstance(axis, int) else unknown for axis in one.shape[1:])
        port = Port(past=one.name, present=present, shape=shape, dtype=TYPES[one.type])
        (state if head == "past" else pending).append(port)
    if missing:
        raise ArtifactError(
            f"not a step graph: it has no {missing[0]}", hint="Run `lineahead export onnx` again."
        )
    return state, pending


class Buffers:
    """State (two sets, or one in place), two pending sets and results of a pool of rows.

    A batch is the first rows of it.

    Rows are moved one by one, so that a sequence comes or goes without a copy of the others. Caches that grow
    are always one buffer, input and output: the graph scatters into them and reads what it has written, so
    that a step costs no copy of them. Everything is bound by address; a call binds anew what has moved or
    changed its shape.

    Attributes:
        batch: rows of the next call.
        nodes: nodes of the last call, whose rows are pending.
        capacity: rows of the caches that grow.
    """

    def __init__(
        self, session: Any, ports: tuple[list[Port], list[Port]], *, provider: Provider, in_place: bool
    ) -> None:
        """Start with no rows."""
        self._session, self._provider = session, provider
        self._value = library().OrtValue
        self._state, self._pending = ports
        self.batch = self.nodes = self._room = 0
        self.capacity = capacity(0)
        first = {port.past: Memory(port.dtype, provider) for port in self._state}
        other = [] if in_place else [port for port in self._state if not port.grows]
        self._states = [first, {**first, **{port.past: Memory(port.dtype, provider) for port in other}}]
        self._rows = [{port.past: Memory(port.dtype, provider) for port in self._pending} for _ in range(2)]
        self._results: tuple[Memory, Memory] = (
            Memory(np.float32, "cpu", zeroed=False),
            Memory(np.float32, "cpu", zeroed=False),
        )
        self._reserved = [0, 0]
        self._turn = 0
        self._held: list[Any] = []
        self._bindings: dict[tuple[int, int], tuple[Any, dict[str, Any]]] = {}

    def resize(self, batch: int) -> None:
        """Use the first `batch` rows; the pool grows as needed, and rows that were used stay as they are."""
        if batch > self._room:
            self._room = max(batch, 2 * self._room if self._room > 1 else batch)
            for states in self._states:
                for port in self._state:
                    states[port.past].reserve(_count(port.sized(self._room, self.capacity)))
            self._bindings.clear()
        self.batch = batch
        self._reserve_pending(self._turn, self.nodes)

    def reserve(self, rows: int) -> None:
        """Make room for `rows` tokens in the caches that grow; what they hold stays."""
        growing = [port for port in self._state if port.grows]
        if rows <= self.capacity or not growing:
            return
        old, self.capacity = self.capacity, capacity(rows)
        for port in growing:
            memory = self._states[0][port.past]
            larger = np.zeros(port.sized(self._room, self.capacity), port.dtype)
            larger[:, :, :old] = memory.read(port.sized(self._room, old))
            memory.replace(larger)
        self._bindings.clear()

    def _reserve_pending(self, side: int, nodes: int) -> None:
        if self.batch * nodes <= self._reserved[side]:
            return
        self._reserved[side] = self.batch * nodes
        for port in self._pending:
            if self._rows[side][port.past].reserve(_count(port.sized(self.batch, nodes))):
                self._bindings.clear()

    def _bound(self) -> tuple[Any, dict[str, Any]]:
        """The binding of this batch size and turn, and what is bound to it."""
        key = self.batch, self._turn
        if key not in self._bindings:
            binding, bound = self._session.io_binding(), dict[str, Any]()
            for port in self._state:
                shape = port.sized(self.batch, self.capacity)
                self._bind(binding.bind_input, port.past, self._states[self._turn][port.past], shape)
                self._bind(binding.bind_output, port.present, self._states[1 - self._turn][port.past], shape)
            self._bindings[key] = binding, bound
        return self._bindings[key]

    def _bind(self, bind: Any, name: str, memory: Memory, shape: tuple[int, ...]) -> None:
        bind(name, memory.provider, 0, memory.dtype, shape, memory.address)

    def run(
        self, call: dict[str, Array], nodes: int, results: int, widths: tuple[int, int]
    ) -> tuple[Array, Array]:
        """One call: bind what changed, run, swap the sets.

        Args:
            call: the small inputs by name.
            nodes: T of this call.
            results: R.
            widths: vocabulary and hidden size.

        Returns:
            logits and hidden states, in buffers that the next call overwrites.
        """
        turn = self._turn
        self._reserve_pending(1 - turn, nodes)
        shapes: list[tuple[int, ...]] = [(self.batch, results, width) for width in widths]
        for memory, shape in zip(self._results, shapes, strict=True):
            if memory.reserve(_count(shape)):
                self._bindings.clear()
        binding, bound = self._bound()
        self._held = [self._value.ortvalue_from_numpy(array) for array in call.values()]
        for name, value in zip(call, self._held, strict=True):
            binding.bind_ortvalue_input(name, value)
        if bound.get("past") != self.nodes:
            for port in self._pending:
                shape = port.sized(self.batch, self.nodes)
                self._bind(binding.bind_input, port.past, self._rows[turn][port.past], shape)
            bound["past"] = self.nodes
        if bound.get("present") != nodes:
            for port in self._pending:
                shape = port.sized(self.batch, nodes)
                self._bind(binding.bind_output, port.present, self._rows[1 - turn][port.past], shape)
            bound["present"] = nodes
        if bound.get("results") != results:
            for name, memory, shape in zip((LOGITS, HIDDEN_STATES), self._results, shapes, strict=True):
                self._bind(binding.bind_output, name, memory, shape)
            bound["results"] = results
        self._session.run_with_iobinding(binding)
        self._turn, self.nodes = 1 - turn, nodes
        return self._view(0, shapes[0]), self._view(1, shapes[1])

    def _view(self, which: int, shape: tuple[int, ...]) -> Array:
        with self._results[which].opened() as flat:
            return flat[: _count(shape)].reshape(shape)

    def _tensors(self, room: int) -> list[tuple[Memory, tuple[int, ...]]]:
        """The current state and pending memory with the shapes of its first `room` rows."""
        state = [(self._states[self._turn][one.past], one.sized(room, self.capacity)) for one in self._state]
        rows = self._rows[self._turn]
        return state + [(rows[one.past], one.sized(room, self.nodes)) for one in self._pending]

    def move(self, moves: Mapping[int, int]) -> None:
        """Overwrite rows, target by source (-1 for zeros); every source is read before it is overwritten."""
        if not moves:
            return
        order = _in_order(moves)
        sources = list(moves.values())
        for memory, shape in self._tensors(1 + max([*moves, *sources])):
            with memory.opened() as flat:
                tensor = flat[: _count(shape)].reshape(shape)
                kept = {row: tensor[row].copy() for row in sources if row in moves} if order is None else {}
                for target in order or moves:
                    source = moves[target]
                    tensor[target] = 0 if source < 0 else kept.get(source, tensor[source])

    def take(self, row: int, length: int) -> tuple[dict[str, Array], dict[str, Array]]:
        """Copies of one row of state and pending tensors, by input name; caches are cut at `length`."""
        shapes = self._tensors(row + 1)
        names = [port.past for port in (*self._state, *self._pending)]
        copies = {name: _row(memory, shape, row) for name, (memory, shape) in zip(names, shapes, strict=True)}
        state = {one.past: copies[one.past] for one in self._state}
        state |= {
            one.past: np.ascontiguousarray(state[one.past][:, :length]) for one in self._state if one.grows
        }
        return state, {one.past: copies[one.past] for one in self._pending}

    def place(self, row: int, state: Mapping[str, Array], pending: Mapping[str, Array], nodes: int) -> None:
        """Write one row of state, and its first `nodes` pending rows; the pending tensors widen as needed."""
        if nodes > self.nodes:
            self._widen(nodes)
        for port, (memory, shape) in zip((*self._state, *self._pending), self._tensors(row + 1), strict=True):
            source = state[port.past] if port.past in state else pending.get(port.past)
            with memory.opened() as flat:
                target = flat[: _count(shape)].reshape(shape)[row]
                if source is None or source.shape != target.shape:
                    target[:] = 0
                if source is not None:
                    target[tuple(map(slice, source.shape))] = source

    def _widen(self, nodes: int) -> None:
        """Give the pending tensors more rows; those that are there stay."""
        old = [
            self._rows[self._turn][port.past].read(port.sized(self.batch, self.nodes))
            for port in self._pending
        ]
        self._reserve_pending(self._turn, nodes)
        for port, array in zip(self._pending, old, strict=True):
            shape = port.sized(self.batch, nodes)
            with self._rows[self._turn][port.past].opened() as flat:
                flat[: _count(shape)].reshape(shape)[:, :, : self.nodes] = array
        self.nodes = nodes

    def read(self) -> dict[str, Array]:
        """Copies of the current state, by input name."""
        states = self._states[self._turn]
        return {one.past: states[one.past].read(one.sized(self.batch, self.capacity)) for one in self._state}

    def write(self, state: Mapping[str, Array]) -> None:
        """Replace the current state (shapes already checked; see :meth:`reserve`); nothing is pending."""
        self.nodes = 0
        for name, array in state.items():
            if self._states[self._turn][name].replace(array):
                self._bindings.clear()


def _count(shape: tuple[int, ...]) -> int:
    return math.prod(shape)


def _row(memory: Memory, shape: tuple[int, ...], row: int) -> Array:
    with memory.opened() as flat:
        return np.array(flat[: _count(shape)].reshape(shape)[row])


def _in_order(moves: Mapping[int, int]) -> list[int] | None:
    """Targets in an order that reads every source before it is overwritten; None when they form a circle."""
    left, order = dict(moves), list[int]()
    while left:
        free = [target for target in left if target not in left.values() or left[target] == target]
        if not free:
            return None
        order += free
        for target in free:
            del left[target]
    return order
