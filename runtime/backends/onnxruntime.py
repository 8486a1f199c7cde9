"""The step graph on ONNX Runtime: state stays in bound buffers and never passes through Python."""

import copy
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lineahead.errors import BackendError
from lineahead.plugins.augmented_attention import native
from lineahead.plugins.augmented_attention.native import Implementation
from lineahead.plugins.step_graph import HIDDEN_STATES, LENGTH_IN, LOGITS
from lineahead.runtime.backends.ort_buffers import Buffers, Port, carried_ports
from lineahead.runtime.backends.ort_library import PROVIDERS, Provider, open_graph, reported
from lineahead.runtime.backends.ort_memory import Array
from lineahead.runtime.caches import rows_needed, trimmed, widened
from lineahead.runtime.session import Ints, RowState, Session, SessionInfo, StepInput, StepOutput, check
from lineahead.runtime.state import same_layout

logger = logging.getLogger(__name__)
REDO = "Run `lineahead verify` on the artifact, and export it again if that fails."


def native_kernels(wanted: Implementation | None, provider: Provider) -> Path | None:
    """The library of native kernels to register, or None when the function bodies run; the log says which.

    Raises:
        BackendError: when `wanted` is ``native`` and there can be no kernel here.
    """
    if provider == "cpu":
        return native.resolve(wanted)
    if wanted == "native":
        raise BackendError(
            "the native kernel runs on the CPU only", hint="Use 'function' or 'auto' with this provider."
        )
    logger.info("augmented attention runs as an ONNX function body (provider %s)", provider)
    return None


class OnnxRuntimeSession(Session):
    """A step graph and the decoding state of a batch.

    Function bodies read and write two state sets that swap; a native kernel updates one set in place, as does
    every step the caches that grow. The length is counted on the host, so it is never aliased.
    """

    def __init__(
        self,
        graph: Path,
        *,
        identity: Callable[[], str],
        precision: str = "fp32",
        provider: Provider = "cpu",
        threads: int = 0,
        implementation: Implementation | None = None,
    ) -> None:
        """Load the graph; the session holds no rows until :meth:`reset`.

        Args:
            graph: ``onnx/verifier*.onnx``.
            identity: gives the model's hash, for saved states.
            precision: of the weights, for reports.
            provider: ``cpu`` or ``cuda``.
            threads: intra-operator threads; 0 lets ONNX Runtime choose.
            implementation: ``native`` kernel, ``function`` bodies, ``auto``, or None for what the
                environment says.

        Raises:
            ArtifactError: when the file is missing or not a step graph.
            BackendError: when ONNX Runtime, the provider or the kernel is not there.
        """
        kernels = native_kernels(implementation, provider)
        try:
            self._session: Any = open_graph(graph, provider=provider, threads=threads, kernels=kernels)
        except BackendError as error:
            unknown = native.lacking(str(error))
            if kernels is None or unknown is None:
                raise
            native.without_kernel(unknown, implementation)
            kernels = None
            self._session = open_graph(graph, provider=provider, threads=threads)
        self._ports: tuple[list[Port], list[Port]] = carried_ports(self._session)
        shapes = {one.name: one.shape for one in self._session.get_outputs()}
        self._widths = int(shapes[LOGITS][-1]), int(shapes[HIDDEN_STATES][-1])
        self._provider, self._in_place = provider, kernels is not None
        self._buffers = self._new()
        self.identity = identity
        self.info = SessionInfo(
            backend="onnxruntime",
            precision=precision,
            implementation="function" if kernels is None else "native",
            device=PROVIDERS[provider],
            threads=threads,
        )
        logger.info("%s: %s", graph, self.info)
        self.reset(0)

    @property
    def length(self) -> Ints:
        """Tokens committed, ``[B]``."""
        return self._length

    def reset(self, batch: int) -> None:
        """Start over with `batch` empty sequences."""
        self._length = np.zeros(batch, np.int64)
        self._buffers.nodes = 0
        self._buffers.resize(batch)
        self._buffers.move(dict.fromkeys(range(batch), -1))

    def _new(self) -> Buffers:
        return Buffers(self._session, self._ports, provider=self._provider, in_place=self._in_place)

    def sibling(self) -> "OnnxRuntimeSession":
        """Another state of the same loaded graph; as :meth:`Session.sibling`."""
        twin = copy.copy(self)
        twin._buffers = twin._new()
        twin.reset(0)
        return twin

    def step(self, inputs: StepInput) -> StepOutput:
        """Commit, then score the nodes; as :meth:`Session.step`."""
        check(inputs, len(self._length), self._buffers.nodes)
        call: dict[str, Array] = {
            "input_ids": inputs.input_ids,
            "ancestors": np.ascontiguousarray(inputs.ancestors),
            "output_index": inputs.output_index,
            "accept_index": inputs.accept_index,
            "accept_count": inputs.accept_count,
            LENGTH_IN: self._length,
        }
        nodes, results = inputs.input_ids.shape[1], inputs.output_index.shape[1]
        with reported("the step failed", REDO):
            self._buffers.reserve(rows_needed(inputs, self._length))
            logits, hidden = self._buffers.run(call, nodes, results, self._widths)
        self._length = self._length + inputs.accept_count
        return StepOutput(logits=logits, hidden=hidden)  # type: ignore[arg-type]

    def fork(self, rows: Sequence[int]) -> None:
        """Continue with `rows`; as :meth:`Session.fork`. Only rows that move are copied."""
        buffers = self._buffers
        buffers.resize(max(len(rows), len(self._length)))
        buffers.move({target: source for target, source in enumerate(rows) if target != source})
        buffers.resize(len(rows))
        pick = np.asarray(rows, np.int64)
        known = self._length if len(self._length) else np.zeros(1, np.int64)
        self._length = np.where(pick < 0, 0, known[np.maximum(pick, 0)])

    def take(self, row: int) -> RowState:
        """A copy of one row; as :meth:`Session.take`."""
        length = int(self._length[row])
        state, pending = self._buffers.take(row, length)
        return RowState(length=length, state=state, pending=pending, nodes=self._buffers.nodes)

    def place(self, row: int, saved: RowState) -> None:
        """Replace one row; as :meth:`Session.place`."""
        self._buffers.reserve(saved.length)
        self._buffers.place(row, saved.state, saved.pending, saved.nodes)
        self._length[row] = saved.length

    def read_state(self) -> dict[str, Array]:
        """Copies of the committed state; caches that grow are cut at the longest sequence."""
        growing = [port.past for port in self._ports[0] if port.grows]
        return {LENGTH_IN: self._length.copy(), **trimmed(self._buffers.read(), growing, self._length)}

    def write_state(self, tensors: dict[str, Array]) -> None:
        """Replace the state; as :meth:`Session.write_state`."""
        length = tensors.get(LENGTH_IN, np.zeros(0, np.int64)).astype(np.int64)
        batch, rows = len(length), int(length.max(initial=0))
        wanted: dict[str, tuple[tuple[int, ...], Any]] = {
            port.past: (port.sized(batch, rows), np.dtype(port.dtype)) for port in self._ports[0]
        }
        wanted[LENGTH_IN] = ((batch,), np.dtype(np.int64))
        found = {name: (array.shape, array.dtype) for name, array in tensors.items()}
        same_layout(found, wanted)
        self.reset(batch)
        self._length = length
        self._buffers.reserve(rows)
        state = {
            port.past: widened(tensors[port.past], self._buffers.capacity)
            if port.grows
            else tensors[port.past]
            for port in self._ports[0]
        }
        self._buffers.write(state)
