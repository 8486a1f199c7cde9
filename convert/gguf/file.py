"""A GGUF file: its header, every size checked against the file before use, and its tensors."""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from lineahead.errors import CheckpointError, needs_package

DAMAGED = "Download or copy the file again."
MAX_TENSORS, MAX_KEYS, MAX_NAME, MAX_DEPTH = 100_000, 100_000, 1024, 4
_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """One tensor of the file: its shape in row-major order, ggml type number, and place in bytes."""

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int
    size: int


@dataclass(frozen=True, kw_only=True)
class GgufFile:
    """A parsed header.

    Attributes:
        path: the file.
        metadata: its key-value section.
        tensors: what is stored, by name.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor] = field(repr=False)

    @property
    def architecture(self) -> str:
        """Name of the architecture, as ggml has it."""
        return str(self.metadata.get("general.architecture", ""))

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the architecture's section: ``block_count`` is ``llama.block_count`` in a Llama file."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def need(self, key: str) -> Any:
        """Like :meth:`get`.

        Raises:
            CheckpointError: when the key is missing.
        """
        value = self.get(key)
        if value is None:
            raise CheckpointError(f"{self.path}: no key {self.architecture}.{key!s}", hint=DAMAGED)
        return value

    def read(self, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        """A tensor's values, dequantised to float32.

        Raises:
            CheckpointError: when its type cannot be dequantised, or it holds NaN or infinity.
        """
        ggml, tensor = ggml_package(), self.tensors[name]
        raw = np.memmap(self.path, np.uint8, "r", tensor.start, (tensor.size,))
        kind = ggml.GGMLQuantizationType(tensor.kind)
        try:
            values = ggml.quants.dequantize(raw.reshape(math.prod(tensor.shape[:-1]), -1), kind)
        except NotImplementedError as error:
            raise CheckpointError(
                f"{self.path}: tensor {name!r} is stored as {kind.name}",
                hint="Use a file with another quantisation.",
            ) from error
        values = np.require(values, np.float32, ["C", "W"]).reshape(tensor.shape)
        if not np.isfinite(values).all():
            raise CheckpointError(
                f"{self.path}: tensor {name!r} holds NaN or infinity", hint="Use an undamaged checkpoint."
            )
        return values


def ggml_package() -> ModuleType:
    """The `gguf` package, which knows the block formats.

    Raises:
        CheckpointError: when it is not installed.
    """
    cure = 'Run `pip install "lineahead[gguf]"`.'
    with needs_package("GGUF files need the gguf package", cure, CheckpointError):
        import gguf
    module: ModuleType = gguf
    return module


def open_gguf(path: Path) -> GgufFile:
    """Parse a file's header.

    Raises:
        CheckpointError: when it is no GGUF file, of an unknown version, truncated, or its header is absurd.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            return _parse(path, _Cursor(path=path, stream=stream, size=size))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read: {error.strerror}", hint="Check the path.") from error


@dataclass(kw_only=True)
class _Cursor:
    path: Path
    stream: BinaryIO
    size: int

    def fail(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {what}", hint=DAMAGED)

    def take(self, count: int) -> bytes:
        if count > self.size - self.stream.tell():
            raise self.fail(f"truncated: the header claims {count} bytes more than the file has")
        return self.stream.read(count)

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def string(self, limit: int | None = None) -> str:
        length = self.number("<Q")
        if limit is not None and length > limit:
            raise self.fail(f"a name of {length} bytes")
        return self.take(length).decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array(depth)
        if kind not in _SCALARS:
            raise self.fail(f"unknown value type {kind} in the header")
        return self.number(_SCALARS[kind])

    def _array(self, depth: int) -> list[Any]:
        kind, count = self.number("<I"), self.number("<Q")
        if kind in _SCALARS:
            form = _SCALARS[kind]
            return [x for (x,) in struct.iter_unpack(form, self.take(count * struct.calcsize(form)))]
        if depth >= MAX_DEPTH or count * 8 > self.size:
            raise self.fail(f"an array of {count} entries in a file of {self.size} bytes")
        return [self.value(kind, depth + 1) for _ in range(count)]


def _parse(path: Path, cursor: _Cursor) -> GgufFile:
    if cursor.size < 24 or cursor.take(4) != b"GGUF":
        raise CheckpointError(f"{path}: not a GGUF file", hint="Name a .gguf file, a folder or a Hub id.")
    version = cursor.number("<I")
    if version not in (2, 3):
        raise CheckpointError(
            f"{path}: GGUF version {version}", hint="Versions 2 and 3, little-endian, can be read."
        )
    tensors, keys = cursor.number("<Q"), cursor.number("<Q")
    if tensors > MAX_TENSORS or keys > MAX_KEYS:
        raise cursor.fail(f"the header claims {tensors} tensors and {keys} keys")
    metadata = {}
    for _ in range(keys):
        name = cursor.string(MAX_NAME)
        metadata[name] = cursor.value(cursor.number("<I"))
    entries = list(_entries(cursor, tensors))
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 16:
        raise cursor.fail(f"general.alignment is {alignment!r}")
    data = -(-cursor.stream.tell() // alignment) * alignment
    stored = [_place(cursor, data, *entry) for entry in entries]
    if len({tensor.name for tensor in stored}) != len(stored):
        raise cursor.fail("two tensors of one name")
    return GgufFile(path=path, metadata=metadata, tensors={tensor.name: tensor for tensor in stored})


def _entries(cursor: _Cursor, count: int) -> Iterator[tuple[str, tuple[int, ...], int, int]]:
    for _ in range(count):
        name = cursor.string(MAX_NAME)
        dimensions = cursor.number("<I")
        if not 1 <= dimensions <= 4:
            raise cursor.fail(f"tensor {name!r} has {dimensions} dimensions")
        shape = tuple(cursor.number("<Q") for _ in range(dimensions))
        yield name, shape[::-1], cursor.number("<I"), cursor.number("<Q")


def _place(
    cursor: _Cursor, data: int, name: str, shape: tuple[int, ...], kind: int, offset: int
) -> StoredTensor:
    ggml = ggml_package()
    try:
        block, block_bytes = ggml.GGML_QUANT_SIZES[ggml.GGMLQuantizationType(kind)]
    except (ValueError, KeyError) as error:
        raise CheckpointError(
            f"{cursor.path}: tensor {name!r} has the unknown type {kind}", hint="Update the gguf package."
        ) from error
    count = math.prod(shape)
    if not count or shape[-1] % block:
        raise cursor.fail(f"tensor {name!r} has the impossible shape {shape}")
    size = count // block * block_bytes
    if data + offset + size > cursor.size:
        raise cursor.fail(f"truncated: tensor {name!r} ends beyond the file")
    return StoredTensor(name=name, shape=shape, kind=kind, start=data + offset, size=size)
