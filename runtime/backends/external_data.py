"""Where an ONNX file says that its weights lie: read from its bytes, before a library follows the paths.

A path in the file could name anything on the machine. Only the protobuf wire format is needed to look, so
neither onnx nor a whole parse is: https://protobuf.dev/programming-guides/encoding. Field numbers are
those of onnx.proto.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lineahead.errors import ArtifactError

AGAIN = "Export the artifact again, or copy onnx/ from where it was made."
MAX_DEPTH = 64
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
EXTERNAL = "external"
# What to look into, by kind of message: field number to kind of the message there.
INSIDE = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: EXTERNAL},
}


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One tensor's place outside the graph file.

    Attributes:
        location: file, relative to the graph's folder.
        offset: first byte.
        length: bytes; 0 when the file does not say.
    """

    location: str
    offset: int = 0
    length: int = 0


def check_external_data(path: Path) -> None:
    """Refuse a graph whose weights would be read from elsewhere than files beside it, or beyond their end.

    Raises:
        ArtifactError: naming what is wrong.
    """
    for piece in external_pieces(path):
        name = piece.location
        if not name or name in (".", "..") or any(mark in name for mark in ("/", "\\", "\0", ":")):
            raise ArtifactError(f"{path}: its weights are to be read from {name!r}", hint=AGAIN)
        try:
            size = (path.parent / name).stat().st_size
        except OSError as error:
            raise ArtifactError(f"{path.parent / name}: missing: {error.strerror}", hint=AGAIN) from error
        if piece.offset + piece.length > size:
            raise ArtifactError(
                f"{path}: a tensor ends at byte {piece.offset + piece.length} of {name}, which has {size}",
                hint=AGAIN,
            )


def external_pieces(path: Path) -> list[Piece]:
    """Every tensor that the file keeps outside itself.

    Raises:
        ArtifactError: when the file cannot be read, or is no protobuf message.
    """
    try:
        if path.stat().st_size == 0:
            raise ArtifactError(f"{path}: empty", hint=AGAIN)
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Walk(path, data).pieces("model", 0, len(data), 0)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot read: {error.strerror}", hint=AGAIN) from error


class _Walk:
    """Reads nested messages by their spans in one buffer."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data = path, data

    def _damaged(self, what: str) -> ArtifactError:
        return ArtifactError(f"{self._path}: damaged: {what}", hint=AGAIN)

    def pieces(self, kind: str, start: int, end: int, depth: int) -> list[Piece]:
        """Pieces in the message of `kind` at bytes `start` to `end`."""
        if depth > MAX_DEPTH:
            raise self._damaged(f"messages nested {depth} deep")
        found: list[Piece] = []
        entries: dict[str, str] = {}
        for field, first, last in self._fields(start, end):
            inside = INSIDE[kind].get(field)
            if inside == EXTERNAL:
                key, value = self._entry(first, last)
                entries[key] = value
            elif inside is not None:
                found += self.pieces(inside, first, last, depth + 1)
        if entries:
            found.append(self._piece(entries))
        return found

    def _piece(self, entries: dict[str, str]) -> Piece:
        numbers = {}
        for key in ("offset", "length"):
            text = entries.get(key, "0")
            if not (text.isascii() and text.isdigit() and len(text) < 20):
                raise self._damaged(f"a tensor's {key} is {text[:20]!r}")
            numbers[key] = int(text)
        return Piece(location=entries.get("location", ""), **numbers)

    def _entry(self, start: int, end: int) -> tuple[str, str]:
        """Key and value of a StringStringEntryProto."""
        parts = {1: "", 2: ""}
        for field, first, last in self._fields(start, end):
            if field in parts:
                parts[field] = self._data[first:last].decode("utf-8", "replace")
        return parts[1], parts[2]

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Field number and span of every length-delimited field; the others are passed over."""
        at = start
        while at < end:
            tag, at = self._varint(at, end)
            field, wire = tag >> 3, tag & 7
            if wire == VARINT:
                _, at = self._varint(at, end)
            elif wire in (FIXED64, FIXED32):
                at += 8 if wire == FIXED64 else 4
            elif wire == BYTES:
                length, at = self._varint(at, end)
                if length > end - at:
                    raise self._damaged(f"a field of {length} bytes where {end - at} are left")
                yield field, at, at + length
                at += length
            else:
                raise self._damaged(f"wire type {wire}")
            if at > end:
                raise self._damaged("a field ends after its message")

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while at < end and shift < 70:
            byte = self._data[at]
            value |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                return value, at
        raise self._damaged("a number does not end")
