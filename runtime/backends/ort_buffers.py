"""Where an ONNX Runtime session's state lives between calls: preallocated values, bound once per set."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lineahead.errors import ArtifactError
from lineahead.plugins.softmax_attention.schema import capacity
from lineahead.plugins.step_graph import CALL_INPUTS, HIDDEN_STATES, LENGTH_IN, LOGITS
from lineahead.runtime.backends.ort_library import Provider, library

NODES, CAPACITY = -1, -2
KEPT_NODES = 64
TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}
Array = npt.NDArray[np.generic]


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
    """Everything that one batch size needs: state (two sets, or one in place), two pending sets, results.

    Caches that grow are always one buffer, input and output: the graph scatters into them and reads what it
    has written, so that a step costs no copy of them. Memory belongs to numpy on the CPU and to ONNX Runtime
    on a GPU. Bindings are made once per set; a call binds its small inputs and, when the number of nodes
    changes, the pending values.
    """

    def __init__(
        self,
        session: Any,
        ports: tuple[list[Port], list[Port]],
        *,
        batch: int,
        provider: Provider,
        in_place: bool,
    ) -> None:
        """Allocate zeroed buffers for `batch` rows."""
        self.batch = batch
        self._value, self._session = library().OrtValue, session
        self._state, self._pending = ports
        self._device = provider
        self.capacity = capacity(0)
        first = self._zeros(self._state, self.capacity)
        constant = [] if in_place else [port for port in self._state if not port.grows]
        self._states: list[dict[str, Any]] = [first, {**first, **self._zeros(constant, 0)}]
        self._rows: list[dict[int, dict[str, Any]]] = [{}, {}]
        self._results: dict[int, tuple[Array, Array, Any, Any]] = {}
        self._turn, self.nodes = 0, 0
        self._held: list[Any] = []
        self._bindings = [self._bind_state(turn) for turn in range(2)]
        self._bound: list[dict[str, int]] = [{}, {}]

    def reserve(self, rows: int) -> None:
        """Make room for `rows` tokens in the caches that grow; what they hold stays."""
        growing = [port for port in self._state if port.grows]
        if rows <= self.capacity or not growing:
            return
        self.capacity = capacity(rows)
        for port in growing:
            old = self._states[0][port.past].numpy()
            larger = np.zeros(port.sized(self.batch, self.capacity), port.dtype)
            larger[:, :, : old.shape[2]] = old
            value = self._from(larger)
            for states in self._states:
                states[port.past] = value
        self._bindings, self._bound = [self._bind_state(turn) for turn in range(2)], [{}, {}]

    def _allocate(self, shape: tuple[int, ...], dtype: type[np.generic]) -> Any:
        return self._from(np.zeros(shape, dtype))

    def _from(self, array: Array) -> Any:
        return self._value.ortvalue_from_numpy(np.ascontiguousarray(array), self._device, 0)

    def _zeros(self, ports: Sequence[Port], count: int) -> dict[str, Any]:
        return {port.past: self._allocate(port.sized(self.batch, count), port.dtype) for port in ports}

    def _bind_state(self, turn: int) -> Any:
        binding = self._session.io_binding()
        for port in self._state:
            binding.bind_ortvalue_input(port.past, self._states[turn][port.past])
            binding.bind_ortvalue_output(port.present, self._states[1 - turn][port.past])
        return binding

    def _pending_rows(self, side: int, nodes: int) -> dict[str, Any]:
        sizes = self._rows[side]
        if nodes not in sizes:
            for old in [one for one in sizes if one > KEPT_NODES and one != self.nodes]:
                del sizes[old]
                self._bound = [{}, {}]
            sizes[nodes] = self._zeros(self._pending, nodes)
        return sizes[nodes]

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
            logits and hidden states, in buffers that the next call with the same R overwrites.
        """
        turn, binding, bound = self._turn, self._bindings[self._turn], self._bound[self._turn]
        self._held = [self._value.ortvalue_from_numpy(array) for array in call.values()]
        for name, value in zip(call, self._held, strict=True):
            binding.bind_ortvalue_input(name, value)
        if bound.get("past") != self.nodes:
            for port in self._pending:
                binding.bind_ortvalue_input(port.past, self._pending_rows(turn, self.nodes)[port.past])
            bound["past"] = self.nodes
        if bound.get("present") != nodes:
            for port in self._pending:
                binding.bind_ortvalue_output(port.present, self._pending_rows(1 - turn, nodes)[port.past])
            bound["present"] = nodes
        logits, hidden, logits_value, hidden_value = self._result(results, widths)
        if bound.get("results") != results:
            binding.bind_ortvalue_output(LOGITS, logits_value)
            binding.bind_ortvalue_output(HIDDEN_STATES, hidden_value)
            bound["results"] = results
        self._session.run_with_iobinding(binding)
        self._turn, self.nodes = 1 - turn, nodes
        return logits, hidden

    def _result(self, results: int, widths: tuple[int, int]) -> tuple[Array, Array, Any, Any]:
        if results not in self._results:
            arrays = [np.zeros((self.batch, results, width), np.float32) for width in widths]
            values = [self._value.ortvalue_from_numpy(array) for array in arrays]
            self._results[results] = (arrays[0], arrays[1], values[0], values[1])
        return self._results[results]

    def read(self) -> tuple[dict[str, Array], dict[str, Array]]:
        """Copies of the current state and pending tensors, by input name."""
        state = {name: value.numpy().copy() for name, value in self._states[self._turn].items()}
        rows = self._pending_rows(self._turn, self.nodes)
        return state, {name: value.numpy().copy() for name, value in rows.items()}

    def write(self, state: dict[str, Array], pending: dict[str, Array], nodes: int) -> None:
        """Replace the current state and pending tensors (shapes already checked; see :meth:`reserve`)."""
        rows = self._pending_rows(self._turn, nodes)
        for target, source in ((self._states[self._turn], state), (rows, pending)):
            for name, array in source.items():
                target[name].update_inplace(np.ascontiguousarray(array))
        self.nodes = nodes
