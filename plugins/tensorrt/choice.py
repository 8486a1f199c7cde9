"""The best tokens of every result, chosen on the device: only their ids and scores cross the bus."""

import ctypes
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from lineahead.errors import BackendError
from lineahead.plugins.tensorrt.cuda import Device
from lineahead.plugins.tensorrt.kernel_call import enqueue, structure

Keys = npt.NDArray[np.uint64]
SYMBOL, TOP_SYMBOL = "lineahead_best_tokens", "lineahead_top_tokens"
MOST_TOP = 64


class Choice(Protocol):
    """Writes one key per row of logits: its best score, made comparable, over the complement of its place."""

    def enqueue(self, logits: int, keys: int, rows: int, width: int, device: Device) -> None:
        """Enqueue it.

        Args:
            logits: address of ``[rows, width]`` float32.
            keys: address of ``[rows]`` uint64.
            rows: how many.
            width: vocabulary.
            device: whose stream.
        """

    def enqueue_top(self, logits: int, keys: int, rows: int, width: int, count: int, device: Device) -> None:
        """Enqueue the best `count` of each row, largest first.

        Args:
            logits: address of ``[rows, width]`` float32.
            keys: address of ``[rows, count]`` uint64.
            rows: how many.
            width: vocabulary.
            count: at most MOST_TOP and `width`.
            device: whose stream.
        """


_TopTokens = structure("_TopTokens", ("rows", "width", "count"), ("logits", "keys"))


class LibraryChoice:
    """The kernels in the plugin library (``best_tokens.cu``, ``top_tokens.cu``)."""

    def __init__(self, library: Path) -> None:
        """Open the library.

        Raises:
            BackendError: when it has no such kernels.
        """
        try:
            opened = ctypes.CDLL(str(library))
            self._function: Any = getattr(opened, SYMBOL)
            self._top: Any = getattr(opened, TOP_SYMBOL)
        except (OSError, AttributeError) as error:
            raise BackendError(
                f"{library}: no kernels that choose tokens: {error}",
                hint="Build it and the engines again: `lineahead plugin build`, `lineahead export tensorrt`.",
            ) from error
        self._function.argtypes = [
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_void_p,
        ]
        self._function.restype = ctypes.c_int

    def enqueue(self, logits: int, keys: int, rows: int, width: int, device: Device) -> None:
        """Enqueue it."""
        code = self._function(logits, keys, rows, width, device.stream)
        if code:
            raise BackendError(f"{SYMBOL} failed with CUDA error {code}", hint="Run it again with -v.")

    def enqueue_top(self, logits: int, keys: int, rows: int, width: int, count: int, device: Device) -> None:
        """Enqueue it."""
        enqueue(self._top, TOP_SYMBOL, _TopTokens(rows, width, count, logits, keys), device)


def tokens_of(keys: Keys) -> npt.NDArray[np.int64]:
    """The chosen tokens; the first among equals."""
    return (~keys & np.uint64(0xFFFFFFFF)).astype(np.int64)


def scores_of(keys: Keys) -> npt.NDArray[np.float32]:
    """Their scores; not a number where any of the row's was not."""
    high = (keys >> np.uint64(32)).astype(np.uint32)
    positive = (high & np.uint32(0x80000000)).astype(np.bool_)
    return np.where(positive, high ^ np.uint32(0x80000000), ~high).astype(np.uint32).view(np.float32)
