"""What every backend offers the decoding loop: one step over a batch of sequences, and moving rows about."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lineahead.errors import BackendError, InputError
from lineahead.runtime import state
from lineahead.runtime.sampling import require_number

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class StepInput:
    """One call of the step graph (``plugins/step_graph.py``): B sequences, T nodes, R results, A accepted.

    The commit is deferred: `accept_index` and `accept_count` say which nodes of the *previous* call became
    text.

    Attributes:
        input_ids: ``[B, T]`` int64, tokens of the nodes.
        ancestors: ``[B, T, T]`` bool; row i marks node i and its ancestors.
        output_index: ``[B, R]`` int64, nodes whose logits and hidden states are wanted.
        accept_index: ``[B, A]`` int64, rows of the previous call in path order; padding is any valid row.
        accept_count: ``[B]`` int64, how many of them count.
    """

    input_ids: Ints
    ancestors: npt.NDArray[np.bool_]
    output_index: Ints
    accept_index: Ints
    accept_count: Ints


@dataclass(frozen=True, kw_only=True)
class StepOutput:
    """Result of one call. The arrays are the session's buffers: read or copy them before the next call.

    A backend that samples on its device may subclass this and fetch `logits` only when they are asked for.

    Attributes:
        logits: ``[B, R, V]`` float32.
        hidden: ``[B, R, E]`` float32, the input of the LM head.
    """

    logits: Floats
    hidden: Floats

    def argmax(self, row: int, result: int) -> int:
        """Best token of one result.

        Raises:
            BackendError: when the logits are not numbers.
        """
        scores = self.logits[row, result]
        best = int(scores.argmax())
        require_number(scores[best])
        return best

    def best(self, row: int, result: int, count: int) -> tuple[Ints, Floats, int] | None:
        """The best `count` tokens of one result, best first, their logits, and V.

        None where the backend does not choose them: take :meth:`scores`.
        """
        return None

    def scores(self, row: int, result: int) -> Floats:
        """Logits ``[V]`` of one result."""
        scores: Floats = self.logits[row, result]
        return scores

    def hold(self, row: int, result: int) -> "Hidden":
        """The hidden state ``[E]`` of one result, for a drafter to read before the next call.

        A copy, or a reference to the device that is fetched when it is read.
        """
        held: Floats = self.hidden[row, result].copy()
        return held


@dataclass(frozen=True, kw_only=True)
class HeldRow:
    """A hidden state that stays on the device until NumPy reads it, which has to be before the next call.

    Attributes:
        output: whose it is.
        row: in the batch of that call.
        result: of that row.
    """

    output: StepOutput
    row: int
    result: int

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Floats:
        found: Floats = self.output.hidden[self.row, self.result]
        return found if dtype is None else found.astype(dtype)


Hidden = Floats | HeldRow


@dataclass(frozen=True, kw_only=True)
class SessionInfo:
    """What is running, for logs, reports and messages.

    Attributes:
        backend: ``onnxruntime``, ``eager``, ``tensorrt``.
        precision: ``fp32``, ``int8``, ``int4``, ...
        implementation: what computes the operator: ``function`` (standard ops), ``native`` (a kernel),
            ``eager``.
        device: where, e.g. ``CPUExecutionProvider``.
        threads: intra-operator threads; 0 when the backend decides.
    """

    backend: str
    precision: str = "fp32"
    implementation: str = "function"
    device: str = "cpu"
    threads: int = 0


@dataclass(frozen=True, kw_only=True)
class RowState:
    """One row of a session, outside it: its committed state, and the rows of the last call that are pending.

    The tensors are the backend's own (numpy's or torch's) without the batch axis; only a session of the same
    model and backend takes them back.

    Attributes:
        length: tokens committed.
        state: by ``past.`` name.
        pending: by ``pending.`` name; empty when nothing is pending.
        nodes: rows of `pending`.
    """

    length: int
    state: Mapping[str, Any]
    pending: Mapping[str, Any] = field(default_factory=dict)
    nodes: int = 0

    def committed(self) -> "RowState":
        """The same without what is pending."""
        return RowState(length=self.length, state=self.state)

    @property
    def nbytes(self) -> int:
        """Size of the tensors."""
        return sum(int(one.nbytes) for part in (self.state, self.pending) for one in part.values())


class Session(ABC):
    """The decoding state of a batch of sequences and the one function that advances it.

    Rows come and go between steps through :meth:`fork`, so an engine can batch continuously. A new session
    holds no rows.

    Attributes:
        info: what is running.
        identity: gives the hash of the model that a saved state belongs to (computed when first asked for).
        chunk: prompt tokens that a call takes best.
        most_rows: sequences that it can hold at once; None for any number.
        drafts: whether it has a draft of its own, for :meth:`draft_step`.
    """

    info: SessionInfo
    identity: Callable[[], str]
    chunk: int = 256
    most_rows: int | None = None
    drafts: bool = False

    @property
    @abstractmethod
    def length(self) -> Ints:
        """Tokens committed so far, ``[B]``; the accepted rows of the last call are not among them yet."""

    @abstractmethod
    def reset(self, batch: int) -> None:
        """Start over with `batch` empty sequences."""

    @abstractmethod
    def step(self, inputs: StepInput) -> StepOutput:
        """Commit the accepted rows of the previous call, then score the nodes of this one.

        Raises:
            InputError: when the shapes do not belong together.
            BackendError: when the backend fails.
        """

    @property
    def most_drafted(self) -> int:
        """Longest chain that :meth:`draft_step` can draft for the rows there are; 0 where it cannot."""
        return 0

    def draft_step(
        self, inputs: StepInput, hidden: Sequence[Hidden | None], count: int
    ) -> tuple[Ints, StepOutput]:
        """As :meth:`step`, but first the session drafts the tokens of nodes 1 to `count` of every sequence.

        Args:
            inputs: every sequence's first node is the root; the ids of the others do not matter. Where there
                are fewer than 1 + `count` nodes, or `ancestors` makes them roots, drafts are not used.
            hidden: for each sequence the state at the token before the root; None where its draft is not
                used.
            count: tokens to draft, at most `most_drafted`.

        Returns:
            The drafted tokens ``[B, count]``, and what the call made of them.

        Raises:
            InputError: when the shapes do not belong together.
            BackendError: when the backend cannot, or fails.
        """
        raise BackendError(
            f"the {self.info.backend} backend does not draft in its steps", hint="Use another drafter."
        )

    @abstractmethod
    def fork(self, rows: Sequence[int]) -> None:
        """Continue with these rows: row i becomes the present row ``rows[i]``, or an empty sequence for -1.

        Selecting, reordering, duplicating, dropping and adding rows are all this; pending rows go along.
        """

    def sibling(self) -> "Session":
        """A session of the same loaded model with rows of its own; the weights are shared.

        Raises:
            BackendError: when the backend cannot.
        """
        raise BackendError(
            f"the {self.info.backend} backend has one state only", hint="Use another backend for serving."
        )

    def take(self, row: int) -> RowState:
        """A copy of one row, pending rows included; the session goes on with it.

        Raises:
            BackendError: when the backend cannot.
        """
        raise BackendError(
            f"the {self.info.backend} backend cannot move single rows",
            hint="Use another backend for serving.",
        )

    def place(self, row: int, saved: RowState) -> None:
        """Replace one row by a saved one of a sibling; its pending rows join those of the last call.

        Raises:
            BackendError: when the backend cannot.
        """
        raise BackendError(
            f"the {self.info.backend} backend cannot move single rows",
            hint="Use another backend for serving.",
        )

    def read(self, sources: Mapping[int, Sequence[int]]) -> None:
        """Give rows their sources: what an encoder-decoder's decoder attends to besides its own text.

        Args:
            sources: tokens by row.

        Raises:
            InputError: when the model has no encoder.
        """
        raise InputError("this model has no encoder to read a source", hint="Give it a prompt instead.")

    @abstractmethod
    def read_state(self) -> dict[str, npt.NDArray[np.generic]]:
        """Copies of the committed state on the host, by ``past.`` names, ``past.length`` included."""

    @abstractmethod
    def write_state(self, tensors: dict[str, npt.NDArray[np.generic]]) -> None:
        """Replace the whole state by tensors as read by :meth:`read_state`; nothing is pending afterwards.

        Raises:
            ArtifactError: when names or shapes are not this model's.
        """

    def flush(self, accept_index: Ints, accept_count: Ints) -> None:
        """Commit the accepted rows of the last call now, by a step over one node that nobody accepts."""
        batch = len(self.length)
        self.step(
            StepInput(
                input_ids=np.zeros((batch, 1), np.int64),
                ancestors=np.ones((batch, 1, 1), np.bool_),
                output_index=np.zeros((batch, 1), np.int64),
                accept_index=accept_index,
                accept_count=accept_count,
            )
        )

    def save_state(self, path: Path, *, tokens: Sequence[Sequence[int]] = ()) -> None:
        """Write the committed state to a file for any backend of the same model; :meth:`flush` first.

        Args:
            path: file to write; replaced atomically.
            tokens: the committed tokens of each row, for drafters and detokenisers that look back.

        Raises:
            StorageError: when it cannot be written.
        """
        state.save(path, self.read_state(), identity=self.identity(), tokens=tokens)

    def load_state(self, path: Path) -> list[list[int]]:
        """Replace the state by a saved one and return the tokens that were saved with it.

        Raises:
            ArtifactError: when the file is damaged or belongs to another model.
        """
        tensors, tokens = state.load(path, identity=self.identity())
        self.write_state(tensors)
        return tokens


def check(inputs: StepInput, batch: int, pending: int) -> None:
    """Refuse inputs whose shapes do not belong together.

    Args:
        inputs: the call.
        batch: rows the session holds.
        pending: nodes of the previous call.

    Raises:
        InputError: naming the input.
    """
    nodes, accepted = inputs.input_ids.shape[1], inputs.accept_index.shape[1]
    expected = {
        "input_ids": (batch, nodes),
        "ancestors": (batch, nodes, nodes),
        "output_index": (batch, inputs.output_index.shape[1]),
        "accept_index": (batch, accepted),
        "accept_count": (batch,),
    }
    for name, shape in expected.items():
        if getattr(inputs, name).shape != shape:
            raise InputError(
                f"{name} has shape {getattr(inputs, name).shape}, expected {shape}",
                hint="Call reset(batch) or fork(rows) before changing the number of sequences.",
            )
    if accepted and not pending:
        raise InputError(
            "accept_index names rows of a previous call, but there was none", hint="Pass it empty."
        )
