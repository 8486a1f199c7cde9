"""The best token of every result, chosen on the device, so that only token ids cross the bus."""

import ctypes
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from lineahead.errors import BackendError
from lineahead.plugins.tensorrt.cuda import Device

Keys = npt.NDArray[np.uint64]
SYMBOL = "lineahead_best_tokens"


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


class LibraryChoice:
    """The kernel in the plugin library (``csrc/cuda/best_tokens.cu``)."""

    def __init__(self, library: Path) -> None:
        """Open the library.

        Raises:
            BackendError: when it has no such kernel.
        """
        try:
            self._function: Any = getattr(ctypes.CDLL(str(library)), SYMBOL)
        except (OSError, AttributeError) as error:
            raise BackendError(
                f"{library}: no kernel {SYMBOL}: {error}", hint="Build the plugin library again."
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


def tokens_of(keys: Keys) -> npt.NDArray[np.int64]:
    """The chosen tokens; the first among equals."""
    return (~keys & np.uint64(0xFFFFFFFF)).astype(np.int64)


def scores_of(keys: Keys) -> npt.NDArray[np.float32]:
    """Their scores; not a number where any of the row's was not."""
    high = (keys >> np.uint64(32)).astype(np.uint32)
    positive = (high & np.uint32(0x80000000)).astype(np.bool_)
    return np.where(positive, high ^ np.uint32(0x80000000), ~high).astype(np.uint32).view(np.float32)
