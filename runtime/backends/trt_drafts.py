"""A draft engine inside a step: it drafts a chain per sequence on the device, and the step verifies it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lineahead.errors import ArtifactError
from lineahead.plugins.tensorrt.cuda import Device
from lineahead.plugins.tensorrt.draft import GUESS, HIDDEN, IDS, SCORES
from lineahead.plugins.tensorrt.draft_kernels import DraftKernels
from lineahead.plugins.tensorrt.engine import Engine
from lineahead.plugins.tensorrt.record import Bucket


@dataclass(frozen=True, kw_only=True)
class ServedDraft:
    """A draft engine and what it serves.

    Attributes:
        engine: one step of the recurrent draft.
        buckets: of its profiles, in order; their batches count.
        kernels: what hands hidden states and tokens on.
        names: ``[V']`` int32, the tokens that its scores are of.
    """

    engine: Engine
    buckets: tuple[Bucket, ...]
    kernels: DraftKernels
    names: npt.NDArray[np.int32]

    def require(self, width: int, where: Path) -> None:
        """Refuse a draft of another model.

        Raises:
            ArtifactError: when its hidden states are not those of the verifier.
        """
        tensors = self.engine.tensors
        if not {HIDDEN, IDS, GUESS, SCORES} <= set(tensors) or tensors[HIDDEN].shape[-1] != width:
            raise ArtifactError(
                f"{where}: not a draft of this verifier",
                hint="Build both again: `lineahead export tensorrt ARTIFACT`.",
            )

    def profile(self, batch: int) -> int | None:
        """The profile for a padded batch, or None."""
        return next((i for i, one in enumerate(self.buckets) if one.batch == batch), None)


class Drafting:
    """The buffers of a draft for one padded batch, and the work of drafting.

    Every sequence begins with the hidden state at the token before its root, wherever that lies: a row of an
    earlier step's results, or one that is uploaded. From then on guesses take turns in two buffers.
    """

    def __init__(self, device: Device, draft: ServedDraft, *, batch: int, profile: int) -> None:
        """Allocate.

        Args:
            device: where.
            draft: the engine.
            batch: sequences, padding included.
            profile: of the engine, for that batch.
        """
        self._device, self._draft, self._batch, self._profile = device, draft, batch, profile
        self._width = int(draft.engine.tensors[HIDDEN].shape[-1])
        self._shapes = {HIDDEN: (batch, self._width), IDS: (batch,)}
        self._sources = device.pinned(batch * 8).view(np.uint64)
        self._sources_there = device.allocate(batch * 8)
        self._given = device.pinned(batch * self._width * 4).view(np.float32).reshape(batch, self._width)
        self._given_there = device.allocate(self._given.nbytes)
        self._hidden = [device.allocate(batch * self._width * 4) for _ in range(2)]
        self._tokens = device.allocate(batch * 4)
        self._scores = device.allocate(batch * len(draft.names) * 4)
        self._names = device.allocate(draft.names.nbytes)
        device.upload(self._names, draft.names)
        device.synchronize()

    def begin(self, sources: Sequence[int | npt.NDArray[np.float32] | None]) -> None:
        """Say where each sequence's hidden state is, before the step runs.

        Args:
            sources: a device address, an array ``[E]``, or None for zeros; padding follows.
        """
        self._sources[:] = 0
        for row, source in enumerate(sources):
            if isinstance(source, int):
                self._sources[row] = source
            elif source is not None:
                self._given[row] = source
                address = self._given_there + row * self._width * 4
                self._device.upload(address, self._given[row])
                self._sources[row] = address

    def _step(self, side: int) -> Callable[[], None]:
        """One step of the engine, from the guess in one buffer to that in the other."""
        addresses = {
            HIDDEN: self._hidden[side],
            IDS: self._tokens,
            GUESS: self._hidden[1 - side],
            SCORES: self._scores,
        }
        return self._draft.engine.prepare(self._profile, self._shapes, addresses)

    def layer_times(self) -> dict[str, float]:
        """Milliseconds of every layer in one step; what was prepared cannot be captured afterwards."""
        return self._draft.engine.profile_layers(self._step(0), self._profile, self._shapes)

    def prepare(self, ids: int, nodes: int, count: int) -> Callable[[], None]:
        """What enqueues the drafting of nodes 1 to `count` of every sequence.

        Args:
            ids: address of the call's ``[batch, nodes]`` int32, whose first column is there.
            nodes: of a sequence, padding included.
            count: tokens to draft.
        """
        draft, batch = self._draft, self._batch
        steps = [self._step(side) for side in range(2)]
        device, kernels, width = self._device, draft.kernels, len(draft.names)

        def enqueue() -> None:
            device.upload(self._sources_there, self._sources)
            kernels.begin(
                self._sources_there,
                ids,
                self._hidden[0],
                self._tokens,
                rows=batch,
                width=self._width,
                nodes=nodes,
                device=device,
            )
            for place in range(1, count + 1):
                steps[(place - 1) % 2]()
                kernels.choose(
                    self._scores,
                    self._names,
                    ids,
                    self._tokens,
                    rows=batch,
                    width=width,
                    nodes=nodes,
                    place=place,
                    device=device,
                )

        return enqueue
