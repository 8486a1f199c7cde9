"""Device memory, one stream and graphs of it, through cuda-python; a Protocol, so that tests need no GPU."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from lineahead.errors import BackendError, needs_package

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
HINT = "Check the driver with `nvidia-smi`, and free the GPU's memory if other programs hold it."


class Device(Protocol):
    """A GPU with one stream: everything but :meth:`synchronize` and :meth:`download` returns at once."""

    @property
    def stream(self) -> int:
        """The stream's handle."""

    def allocate(self, size: int) -> int:
        """Address of `size` zeroed bytes."""

    def free(self, address: int) -> None:
        """Give an allocation back."""

    def pinned(self, size: int) -> Bytes:
        """Host memory that copies run from and to without staging."""

    def upload(self, address: int, array: Array) -> None:
        """Enqueue a copy from the host, which must not change before :meth:`synchronize`."""

    def fetch(self, array: Array, address: int) -> None:
        """Enqueue a copy to the host."""

    def download(self, array: Array, address: int) -> None:
        """Copy to the host and wait."""

    def copy(self, target: int, source: int, size: int) -> None:
        """Enqueue a copy on the device."""

    def zero(self, address: int, size: int) -> None:
        """Enqueue zeroing."""

    def synchronize(self) -> None:
        """Wait for everything enqueued."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what `work` enqueues, without running it; returns what launches the recording."""


class CudaDevice:
    """The current CUDA device."""

    def __init__(self) -> None:
        """Open device 0 of those that are visible.

        Raises:
            BackendError: when cuda-python or a device is missing.
        """
        cure = "Run `pip install cuda-python`."
        with needs_package("GPUs are reached through cuda-python, which is missing", cure, BackendError):
            from cuda.bindings import runtime
        self._api: Any = runtime
        self._call("cudaSetDevice", 0)
        self._stream = self._call("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking)
        self._held: list[Any] = []

    def _call(self, name: str, *arguments: Any) -> Any:
        code, *values = getattr(self._api, name)(*arguments)
        if int(code):
            raise BackendError(f"{name} failed: {code.name}", hint=HINT)
        return values[0] if len(values) == 1 else values

    @property
    def stream(self) -> int:
        """The stream's handle."""
        return int(self._stream)

    @property
    def name(self) -> str:
        """Name of the card."""
        return bytes(self._call("cudaGetDeviceProperties", 0).name).split(b"\0")[0].decode()

    @property
    def capability(self) -> tuple[int, int]:
        """Compute capability."""
        kinds = self._api.cudaDeviceAttr
        names = ("cudaDevAttrComputeCapabilityMajor", "cudaDevAttrComputeCapabilityMinor")
        major, minor = (self._call("cudaDeviceGetAttribute", getattr(kinds, name), 0) for name in names)
        return int(major), int(minor)

    def allocate(self, size: int) -> int:
        """Address of `size` zeroed bytes."""
        address = int(self._call("cudaMalloc", max(size, 1)))
        self.zero(address, size)
        return address

    def free(self, address: int) -> None:
        """Give an allocation back."""
        self.synchronize()
        self._call("cudaFree", address)

    def pinned(self, size: int) -> Bytes:
        """Page-locked host memory."""
        array = np.zeros(max(size, 1), np.uint8)
        self._call("cudaHostRegister", array.ctypes.data, array.nbytes, 0)
        self._held.append(array)
        return array

    def _move(self, target: int, source: int, size: int, kind: str) -> None:
        kinds = self._api.cudaMemcpyKind
        self._call("cudaMemcpyAsync", target, source, size, getattr(kinds, kind), self._stream)

    def upload(self, address: int, array: Array) -> None:
        """Enqueue a copy from the host."""
        self._move(address, array.ctypes.data, array.nbytes, "cudaMemcpyHostToDevice")

    def fetch(self, array: Array, address: int) -> None:
        """Enqueue a copy to the host."""
        self._move(array.ctypes.data, address, array.nbytes, "cudaMemcpyDeviceToHost")

    def download(self, array: Array, address: int) -> None:
        """Copy to the host and wait."""
        self.fetch(array, address)
        self.synchronize()

    def copy(self, target: int, source: int, size: int) -> None:
        """Enqueue a copy on the device."""
        self._move(target, source, size, "cudaMemcpyDeviceToDevice")

    def zero(self, address: int, size: int) -> None:
        """Enqueue zeroing."""
        self._call("cudaMemsetAsync", address, 0, size, self._stream)

    def synchronize(self) -> None:
        """Wait for the stream."""
        self._call("cudaStreamSynchronize", self._stream)

    def milliseconds(self, work: Callable[[], None]) -> float:
        """What the device spends on `work`, which is enqueued between two events."""
        start, end = (self._call("cudaEventCreate") for _ in range(2))
        self._call("cudaEventRecord", start, self._stream)
        work()
        self._call("cudaEventRecord", end, self._stream)
        self.synchronize()
        found = float(self._call("cudaEventElapsedTime", start, end))
        for event in (start, end):
            self._call("cudaEventDestroy", event)
        return found

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record a CUDA graph."""
        mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self._stream, mode)
        try:
            work()
        finally:
            graph = self._call("cudaStreamEndCapture", self._stream)
        made = self._call("cudaGraphInstantiate", graph, 0)
        self._held.append(graph)
        return lambda: self._call("cudaGraphLaunch", made, self._stream) and None
