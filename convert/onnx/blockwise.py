"""Weights as small integers, a scale and a zero point per block, laid out as ONNX Runtime's kernels want."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

SHRINKS = (
    1.0,
    0.96,
    0.92,
    0.88,
    0.84,
    0.8,
)  # of a block's range: clipping its extremes often lowers the total error
CHUNK_ROWS = 2048


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """A quantised matrix ``[N, K]``: ``w = (code - zero) * scale``, one scale and zero per `block` columns.

    Attributes:
        codes: ``[N, K / block, block * bits / 8]``, two codes a byte at 4 bits, the low half first; K padded
            with zeros.
        scales: ``[N, K / block]``.
        zeros: ``[N, ceil(K / block * bits / 8)]``, packed like the codes.
        bits: 4 or 8.
        block: columns of a block.
        columns: K before padding.
    """

    codes: Bytes
    scales: Floats
    zeros: Bytes
    bits: int
    block: int
    columns: int

    def dequantized(self) -> Floats:
        """The matrix that the integers stand for, ``[N, K]``."""
        result: Floats = np.empty((len(self.codes), self.columns), np.float32)
        for start in range(0, len(result), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            result[part] = self._rows(part)
        return result

    def _rows(self, part: slice) -> Floats:
        scales = self.scales[part]
        rows, blocks = scales.shape
        codes = _unpack(self.codes[part].reshape(rows, -1), self.bits).reshape(rows, blocks, self.block)
        zeros = _unpack(self.zeros[part], self.bits)[:, :blocks]
        weights = (codes.astype(np.float32) - zeros[:, :, None]) * scales[:, :, None]
        return weights.reshape(rows, -1)[:, : self.columns]


def quantize_blocks(weight: Floats, *, bits: int, block: int) -> Blocks:
    """Quantise ``weight [N, K]`` block by block, with the scale and zero point of least squared error found.

    Candidates are the block's range shrunk by SHRINKS; the scale of each is refitted by least squares to its
    codes.

    Args:
        weight: the matrix, one row per output.
        bits: 4 or 8.
        block: columns that share a scale.
    """
    parts = [_quantize_rows(rows, bits, block) for rows in _chunks(weight)]
    codes, scales, zeros = (np.concatenate([part[i] for part in parts]) for i in range(3))
    rows, blocks = scales.shape
    return Blocks(
        codes=_pack(codes.reshape(rows, -1), bits).reshape(rows, blocks, -1),
        scales=scales,
        zeros=_pack(zeros, bits),
        bits=bits,
        block=block,
        columns=weight.shape[1],
    )


def _chunks(weight: Floats) -> Iterator[Floats]:
    for start in range(0, len(weight), CHUNK_ROWS):
        yield np.ascontiguousarray(weight[start : start + CHUNK_ROWS], dtype=np.float32)


def _quantize_rows(weight: Floats, bits: int, block: int) -> tuple[Bytes, Floats, Bytes]:
    rows, columns = weight.shape
    padded = np.pad(weight, ((0, 0), (0, -columns % block))).reshape(rows, -1, block)
    low, high = np.minimum(padded.min(-1), 0), np.maximum(padded.max(-1), 0)
    best: tuple[Floats, ...] | None = None
    for shrink in SHRINKS if bits < 8 else SHRINKS[:1]:
        codes, scale, zero = _fit(padded, low * shrink, high * shrink, bits)
        error = np.square(((codes - zero[..., None]) * scale[..., None]) - padded).sum(-1)
        if best is None:
            best = (error, codes, scale, zero)
        else:
            better = error < best[0]
            best = tuple(
                np.where(better[..., None] if new.ndim == 3 else better, new, old)
                for new, old in zip((error, codes, scale, zero), best, strict=True)
            )
    assert best is not None
    _, codes, scale, zero = best
    return codes.astype(np.uint8), scale, zero.astype(np.uint8)


def _fit(padded: Floats, low: Floats, high: Floats, bits: int) -> tuple[Floats, Floats, Floats]:
    top = np.float32(2**bits - 1)
    scale = np.maximum(high - low, np.finfo(np.float32).tiny) / top
    zero = np.clip(np.rint(-low / scale), 0, top)
    codes = np.clip(np.rint(padded / scale[..., None]) + zero[..., None], 0, top)
    steps = codes - zero[..., None]
    norm = np.square(steps).sum(-1)
    fitted = (steps * padded).sum(-1) / np.maximum(norm, 1)
    return codes, np.where((norm > 0) & (fitted > 0), fitted, scale).astype(np.float32), zero


def _pack(codes: Bytes, bits: int) -> Bytes:
    if bits == 8:
        return codes
    even = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
    packed: Bytes = even[:, 0::2] | (even[:, 1::2] << np.uint8(4))
    return packed


def _unpack(codes: Bytes, bits: int) -> Bytes:
    if bits == 8:
        return codes
    whole: Bytes = np.empty((len(codes), codes.shape[1] * 2), np.uint8)
    whole[:, 0::2], whole[:, 1::2] = codes & 15, codes >> 4
    return whole
