"""Caches that grow with the text: how many rows a step needs, and their form outside a session."""

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from lineahead.runtime.session import Ints, StepInput

Arrays = dict[str, npt.NDArray[np.generic]]


def rows_needed(inputs: StepInput, length: Ints) -> int:
    """Rows that the commit at the beginning of a step can write to, padding included."""
    return int(length.max(initial=0)) + int(inputs.accept_index.shape[1])


def trimmed(state: Arrays, growing: Collection[str], length: Ints) -> Arrays:
    """`state` with its caches cut at the longest sequence, and zeros beyond the end of every other one.

    Args:
        state: tensors by name.
        growing: names of the caches, ``[B, H, N, D]``.
        length: ``[B]``.
    """
    rows = int(length.max(initial=0))
    beyond = np.arange(rows) >= length[:, None]
    result = dict(state)
    for name in growing:
        kept = state[name][:, :, :rows].copy()
        kept.swapaxes(1, 2)[beyond] = 0
        result[name] = kept
    return result


def widened(cache: npt.NDArray[np.generic], rows: int) -> npt.NDArray[np.generic]:
    """``cache [B, H, N, D]`` with zeros after its last row, up to `rows`."""
    more = np.zeros((*cache.shape[:2], rows - cache.shape[2], cache.shape[3]), cache.dtype)
    return np.concatenate([cache, more], 2)
