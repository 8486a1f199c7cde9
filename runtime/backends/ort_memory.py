"""Flat memory for tensors that ONNX Runtime reads and writes by address, on the host or on a device."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from lineahead.runtime.backends.ort_library import Provider, library

Array = npt.NDArray[np.generic]


class Memory:
    """Elements of one type in a row, which can grow; tensors are views of its beginning.

    On the CPU the memory is numpy's, so that opening it costs nothing. On a GPU it belongs to ONNX Runtime,
    and opening it copies all of it to the host and back.
    """

    def __init__(self, dtype: type[np.generic], provider: Provider, *, zeroed: bool = True) -> None:
        """Start with room for one element.

        Args:
            dtype: of the elements.
            provider: where the memory is.
            zeroed: whether growing keeps what was there and adds zeros; otherwise the contents are lost.
        """
        self.dtype, self.provider, self._zeroed = dtype, provider, zeroed
        self._array: Array = np.zeros(1, dtype)
        self._value: Any = None
        self._store()

    @property
    def address(self) -> int:
        """Where it begins; changes when it grows."""
        if self._value is None:
            return int(self._array.ctypes.data)
        return int(self._value.data_ptr())

    def _store(self) -> None:
        if self.provider != "cpu":
            self._value = library().OrtValue.ortvalue_from_numpy(self._array, self.provider, 0)

    def reserve(self, count: int) -> bool:
        """Make room for `count` elements; returns whether the memory has moved."""
        if count <= len(self._array):
            return False
        larger: Array = np.zeros(count, self.dtype)
        if self._zeroed:
            with self.opened() as old:
                larger[: len(old)] = old
        self._array = larger
        self._store()
        return True

    def replace(self, array: Array) -> bool:
        """Become these elements (any shape); returns whether the memory has moved."""
        moved = self.reserve(array.size)
        with self.opened() as flat:
            flat[: array.size] = array.reshape(-1)
        return moved

    @contextlib.contextmanager
    def opened(self) -> Iterator[Array]:
        """All elements, to read and to write."""
        if self._value is None:
            yield self._array
            return
        self._array = self._value.numpy()
        yield self._array
        self._value.update_inplace(self._array)

    def read(self, shape: tuple[int, ...]) -> Array:
        """A copy of the tensor of `shape` at the beginning."""
        count = math.prod(shape)
        array = self._array if self._value is None else self._value.numpy()
        return np.array(array[:count].reshape(shape))
