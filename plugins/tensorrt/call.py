"""One call of an engine: which bucket serves it, and its inputs padded into one block of memory."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lineahead.errors import InputError
from lineahead.plugins.step_graph import CALL_INPUTS, LENGTH_IN
from lineahead.plugins.tensorrt.record import Bucket

ALIGNMENT = 256
CALL_NAMES = (*CALL_INPUTS, LENGTH_IN)
Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Everything that the shapes of a call depend on.

    Attributes:
        engine: index of the engine.
        profile: index of the bucket among the engine's.
        batch: B.
        nodes: T.
        results: R.
        pending: P, nodes of the previous call; also A.
    """

    engine: int
    profile: int
    batch: int
    nodes: int
    results: int
    pending: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the call's own inputs, all int32."""
        b, t = self.batch, self.nodes
        return {
            "input_ids": (b, t),
            "ancestors": (b, t, t),
            "output_index": (b, self.results),
            "accept_index": (b, self.pending),
            "accept_count": (b,),
            LENGTH_IN: (b,),
        }

    def offsets(self) -> tuple[dict[str, int], int]:
        """Where each input begins in the call's block, and the size of the block in bytes."""
        offsets, total = {}, 0
        for name, shape in self.shapes().items():
            offsets[name] = total
            total += -(-math.prod(shape) * 4 // ALIGNMENT) * ALIGNMENT
        return offsets, total

    def views(self, block: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.int32]]:
        """Each input in a block of ``offsets()[1]`` bytes."""
        offsets = self.offsets()[0]
        return {
            name: block[offsets[name] : offsets[name] + math.prod(shape) * 4].view(np.int32).reshape(shape)
            for name, shape in self.shapes().items()
        }


def choose(buckets: Sequence[Bucket], batch: int, nodes: int, results: int) -> int:
    """The bucket that wastes least on a call.

    Args:
        buckets: of the engine.
        batch: sequences.
        nodes: of the call.
        results: wanted.

    Raises:
        InputError: when none is large enough.
    """
    fitting = [
        (one.batch * one.nodes, place)
        for place, one in enumerate(buckets)
        if one.batch >= batch and one.nodes >= nodes and one.results >= results
    ]
    if not fitting:
        have = ", ".join(f"{one.batch}x{one.nodes} ({one.results} results)" for one in buckets)
        raise InputError(
            f"a call of {batch} sequences, {nodes} nodes and {results} results; the engine has {have}",
            hint="Build larger buckets: `lineahead export tensorrt --bucket BATCHxNODES`.",
        )
    return min(fitting)[1]


def fill(views: Mapping[str, npt.NDArray[np.int32]], call: Mapping[str, Array]) -> None:
    """Write a call into its block, padded: spare nodes are roots, spare sequences are empty and accept none.

    Args:
        views: of :meth:`Sizes.views`.
        call: the inputs, as in ``plugins/step_graph.py``.
    """
    for name in CALL_NAMES:
        target, source = views[name], call[name]
        if target.shape != source.shape:
            target[...] = 0
            if name == "ancestors":
                spare = np.arange(target.shape[1])
                target[:, spare, spare] = 1
            target = target[tuple(slice(0, size) for size in source.shape)]
        target[...] = source
