"""What stands between a draft's steps and the verifying call (``step_fusions/csrc/cuda/draft.h``)."""

import ctypes
from pathlib import Path
from typing import Any, Protocol

from lineahead.errors import BackendError
from lineahead.plugins.tensorrt.cuda import Device
from lineahead.plugins.tensorrt.kernel_call import enqueue, structure

BEGIN, CHOICE = "lineahead_draft_begin", "lineahead_draft_choice"


class DraftKernels(Protocol):
    """Hands hidden states and tokens on without the host; all arguments but sizes are device addresses."""

    def begin(
        self,
        sources: int,
        ids: int,
        hidden: int,
        tokens: int,
        *,
        rows: int,
        width: int,
        nodes: int,
        device: Device,
    ) -> None:
        """Enqueue: gather hidden states, and the first node of every sequence.

        Args:
            sources: of ``[rows]`` uint64, each the address of `width` float32; 0 for zeros.
            ids: of ``[rows, nodes]`` int32.
            hidden: of ``[rows, width]`` float32, written.
            tokens: of ``[rows]`` int32, written.
            rows: sequences.
            width: of a hidden state.
            nodes: of a sequence.
            device: whose stream.
        """

    def choose(
        self,
        scores: int,
        names: int,
        ids: int,
        tokens: int,
        *,
        rows: int,
        width: int,
        nodes: int,
        place: int,
        device: Device,
    ) -> None:
        """Enqueue: the token with the best score, the first among equals, becomes node `place`.

        Args:
            scores: of ``[rows, width]`` float32.
            names: of ``[width]`` int32, the tokens that the scores are of.
            ids: of ``[rows, nodes]`` int32, whose column `place` is written.
            tokens: of ``[rows]`` int32, written.
            rows: sequences.
            width: tokens that can be proposed.
            nodes: of a sequence.
            place: of the node.
            device: whose stream.
        """


_Begin = structure("_Begin", ("rows", "width", "nodes"), ("sources", "ids", "hidden", "tokens"))
_Choice = structure("_Choice", ("rows", "width", "nodes", "place"), ("scores", "names", "ids", "tokens"))


class LibraryDraftKernels:
    """The kernels of the plugin library."""

    def __init__(self, library: Path) -> None:
        """Open the library.

        Raises:
            BackendError: when it has no such kernels.
        """
        try:
            opened = ctypes.CDLL(str(library))
            self._functions = {name: getattr(opened, name) for name in (BEGIN, CHOICE)}
        except (OSError, AttributeError) as error:
            raise BackendError(
                f"{library}: no kernels of drafts: {error}",
                hint="Build library and engines again (`lineahead plugin build`), or pass --no-draft.",
            ) from error

    def begin(
        self,
        sources: int,
        ids: int,
        hidden: int,
        tokens: int,
        *,
        rows: int,
        width: int,
        nodes: int,
        device: Device,
    ) -> None:
        """Enqueue it."""
        self._enqueue(BEGIN, _Begin(rows, width, nodes, sources, ids, hidden, tokens), device)

    def choose(
        self,
        scores: int,
        names: int,
        ids: int,
        tokens: int,
        *,
        rows: int,
        width: int,
        nodes: int,
        place: int,
        device: Device,
    ) -> None:
        """Enqueue it."""
        self._enqueue(CHOICE, _Choice(rows, width, nodes, place, scores, names, ids, tokens), device)

    def _enqueue(self, name: str, call: Any, device: Device) -> None:
        enqueue(self._functions[name], name, call, device)
