"""Where a TensorRT session's state lives: on the device, in place; pending rows in two sets that swap."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lineahead.errors import ArtifactError
from lineahead.plugins.step_graph import LENGTH_IN
from lineahead.plugins.tensorrt.cuda import Device
from lineahead.plugins.tensorrt.engine import BYTES, Tensor

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Carried:
    """A tensor that goes from call to call.

    Attributes:
        past: name of the input.
        present: name of the output that becomes it.
        shape: without the batch axis; -1 where the axis counts nodes.
        dtype: as NumPy names it, or ``bfloat16``.
    """

    past: str
    present: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def is_pending(self) -> bool:
        """Whether it holds the previous call's rows, instead of state."""
        return self.past.startswith("pending.")

    def sized(self, batch: int, nodes: int) -> tuple[int, ...]:
        """Shape for a batch and a number of nodes."""
        return (batch, *(nodes if axis < 0 else axis for axis in self.shape))

    def row_bytes(self, nodes: int) -> int:
        """Bytes of one sequence."""
        return int(np.prod(self.sized(1, nodes))) * BYTES[self.dtype]


def carried_tensors(tensors: dict[str, Tensor]) -> list[Carried]:
    """The carried tensors of a verifier engine.

    Raises:
        ArtifactError: when the engine is not of a step graph.
    """
    found = []
    for name, tensor in tensors.items():
        head, _, tail = name.partition(".")
        if not tensor.is_input or head not in ("past", "pending") or name == LENGTH_IN:
            continue
        present = f"present.{tail}" if head == "past" else f"pending_out.{tail}"
        if present not in tensors or tensors[present].dtype != tensor.dtype:
            raise ArtifactError(
                f"the engine has {name} without {present} of the same type",
                hint="Build it again: `lineahead export tensorrt`.",
            )
        found.append(Carried(past=name, present=present, shape=tensor.shape[1:], dtype=tensor.dtype))
    if not found:
        raise ArtifactError("not a verifier engine", hint="Build it again: `lineahead export tensorrt`.")
    return found


class Memory:
    """State and pending rows of up to `batch` sequences.

    Attributes:
        batch: sequences that fit.
        side: which of the two pending sets holds the previous call's rows.
        nodes: of the previous call, padding included; 0 before the first.
    """

    def __init__(self, device: Device, carried: Sequence[Carried], *, batch: int, most_nodes: int) -> None:
        """Allocate, zeroed."""
        self.batch, self.side, self.nodes = batch, 0, 0
        self._device, self._carried = device, carried
        self._state = {
            one.past: device.allocate(one.row_bytes(0) * batch) for one in carried if not one.is_pending
        }
        self._pending = [
            {
                one.past: device.allocate(one.row_bytes(most_nodes) * batch)
                for one in carried
                if one.is_pending
            }
            for _ in range(2)
        ]

    def address(self, one: Carried) -> int:
        """Where the tensor is that the next call reads."""
        return self._pending[self.side][one.past] if one.is_pending else self._state[one.past]

    def addresses(self, side: int) -> dict[str, int]:
        """Buffers of all carried inputs and outputs, for a call that reads pending set `side`."""
        found = {}
        for one in self._carried:
            if one.is_pending:
                found[one.past] = self._pending[side][one.past]
                found[one.present] = self._pending[1 - side][one.past]
            else:
                found[one.past] = found[one.present] = self._state[one.past]
        return found

    def clear(self) -> None:
        """Empty every sequence."""
        for one in self._carried:
            if not one.is_pending:
                self._device.zero(self._state[one.past], one.row_bytes(0) * self.batch)
        self.nodes = 0

    def take(self, other: "Memory", rows: Sequence[int]) -> None:
        """Become rows of `other`, which may be this memory itself; -1 is an empty sequence."""
        nodes = other.nodes
        for one in self._carried:
            size = one.row_bytes(nodes)
            if not size:
                continue
            source, target = other.address(one), self.address(one)
            if other is self:
                held = self._device.allocate(size * self.batch)
                self._device.copy(held, source, size * self.batch)
                source = held
            for place, row in enumerate(rows):
                if row < 0:
                    self._device.zero(target + place * size, size)
                else:
                    self._device.copy(target + place * size, source + row * size, size)
            if other is self:
                self._device.free(source)
        self.nodes = nodes

    def _bytes(self, one: Carried, nodes: int, batch: int = 1) -> tuple[int, ...]:
        """Shape of rows of a tensor as bytes, nodes of its own axis counted."""
        shape = one.sized(batch, nodes if one.is_pending else 0)
        return (*shape[:-1], shape[-1] * BYTES[one.dtype])

    def read_row(self, row: int) -> dict[str, Array]:
        """One sequence's state and pending rows, as bytes without the batch axis."""
        found = {}
        for one in self._carried:
            raw = np.zeros(self._bytes(one, self.nodes)[1:], np.uint8)
            if raw.size:
                self._device.download(raw.reshape(-1), self.address(one) + row * raw.size)
            found[one.past] = raw
        return found

    def write_row(self, row: int, tensors: Mapping[str, Array], nodes: int) -> None:
        """Replace one sequence by what :meth:`read_row` gave; what `tensors` lack is zero.

        Args:
            row: which.
            tensors: of a memory with the same tensors.
            nodes: pending rows in them; all sequences get so many, when they have fewer.
        """
        if nodes > self.nodes:
            self._widen(nodes)
        for one in self._carried:
            raw = np.zeros(self._bytes(one, self.nodes)[1:], np.uint8)
            if one.past in tensors:
                raw[tuple(map(slice, tensors[one.past].shape))] = tensors[one.past]
            if raw.size:
                self._device.upload(self.address(one) + row * raw.size, raw.reshape(-1))
                self._device.synchronize()

    def _widen(self, nodes: int) -> None:
        """Give every sequence more pending rows; those that are there stay."""
        for one in self._carried:
            if not one.is_pending:
                continue
            wider = np.zeros(self._bytes(one, nodes, self.batch), np.uint8)
            held = np.zeros(self._bytes(one, self.nodes, self.batch), np.uint8)
            if held.size:
                self._device.download(held.reshape(-1), self.address(one))
                wider[tuple(map(slice, held.shape))] = held
            self._device.upload(self.address(one), wider.reshape(-1))
            self._device.synchronize()
        self.nodes = nodes

    def read(self, rows: int) -> dict[str, Array]:
        """The state of the first `rows` sequences, as float32."""
        found = {}
        for one in self._carried:
            if not one.is_pending:
                raw = np.zeros(one.row_bytes(0) * rows, np.uint8)
                if raw.size:
                    self._device.download(raw, self._state[one.past])
                found[one.past] = widened(raw, one.dtype).reshape(one.sized(rows, 0))
        return found

    def write(self, tensors: dict[str, Array]) -> None:
        """Replace the state; nothing is pending afterwards."""
        self.clear()
        for one in self._carried:
            if not one.is_pending and tensors[one.past].size:
                raw = narrowed(tensors[one.past], one.dtype)
                self._device.upload(self._state[one.past], raw)
                self._device.synchronize()


def widened(raw: Array, dtype: str) -> Array:
    """Bytes of a float type as float32."""
    if dtype == "bfloat16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return raw.view(np.dtype(dtype)).astype(np.float32)


def narrowed(array: Array, dtype: str) -> Array:
    """float32 as a float type, to nearest."""
    plain = np.ascontiguousarray(array, np.float32)
    if dtype == "bfloat16":
        bits = plain.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return plain.astype(np.dtype(dtype))
