"""Calls of the plugin library's kernels that take one structure, a stream and room for a message."""

import ctypes
from typing import Any

from lineahead.errors import BackendError
from lineahead.plugins.tensorrt.cuda import Device


def structure(name: str, integers: tuple[str, ...], pointers: tuple[str, ...]) -> Any:
    """A C structure of 32-bit integers, then pointers."""
    fields = [(one, ctypes.c_int32) for one in integers] + [(one, ctypes.c_void_p) for one in pointers]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


def enqueue(function: Any, name: str, call: Any, device: Device) -> None:
    """Enqueue a call on the device's stream.

    Raises:
        BackendError: with the kernel's message.
    """
    message = ctypes.create_string_buffer(256)
    stream, size = ctypes.c_void_p(device.stream), ctypes.c_size_t(len(message))
    if function(ctypes.byref(call), stream, message, size):
        raise BackendError(f"{name}: {message.value.decode()}", hint="Run it again with -v.")
