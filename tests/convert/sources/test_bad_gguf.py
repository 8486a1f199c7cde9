"""GGUF files that cannot be used: one line that names the file or tensor, and the cure."""

import struct

import pytest
import tiny_ggufs as ggufs
from refusals import cut, refused

from lineahead.convert.gguf.file import open_gguf
from lineahead.convert.source import load_source
from lineahead.errors import ArchitectureError, CheckpointError, LineaheadError

BIGGEST = (1 << 64) - 1


def tiny_gguf(original, folder, with_tokenizer=True, **options):
    source = load_source(original)
    return ggufs.write(
        folder / "m.gguf", source.model, source.tokenizer if with_tokenizer else None, **options
    )


@pytest.mark.parametrize("size", [-1, -5000, 3000, 100, 24, 23, 4, 0])
def test_truncated_gguf(size, original, tmp_path):
    path = tiny_gguf(original, tmp_path)
    cut(path, size)
    refused(CheckpointError, "m.gguf", reference=path)


def gguf_bytes(*, magic=b"GGUF", version=3, tensors=0, keys=0, body=b""):
    return magic + struct.pack("<IQQ", version, tensors, keys) + body + b"\0" * 64


def text(value):
    return struct.pack("<Q", len(value)) + value


ESCAPE = text(b"../../etc")
ARCH = text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama")


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (gguf_bytes(magic=b"GGML"), "not a GGUF"),
        (gguf_bytes(version=1), "version 1"),
        (gguf_bytes(version=0x03000000), "version"),
        (gguf_bytes(tensors=BIGGEST), "claims"),
        (gguf_bytes(keys=BIGGEST), "claims"),
        (gguf_bytes(keys=1, body=struct.pack("<Q", BIGGEST)), "name"),
        (gguf_bytes(keys=1, body=text(b"k") + struct.pack("<IQ", 8, 1 << 50)), "truncated"),
        (gguf_bytes(keys=1, body=text(b"k") + struct.pack("<IIQ", 9, 4, 1 << 61)), "truncated"),
        (gguf_bytes(keys=1, body=text(b"k") + struct.pack("<IIQ", 9, 8, 1 << 61)), "array"),
        (gguf_bytes(keys=1, body=text(b"k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9), "array"),
        (gguf_bytes(keys=1, body=text(b"k") + struct.pack("<I", 77)), "type 77"),
        (gguf_bytes(keys=2, body=ARCH + text(b"general.alignment") + struct.pack("<II", 4, 0)), "alignment"),
        (gguf_bytes(tensors=1, body=text(b"t") + struct.pack("<I", 999)), "999 dimensions"),
        (gguf_bytes(tensors=1, body=text(b"t") + struct.pack("<IQIQ", 1, 0, 0, 0)), "shape"),
        (gguf_bytes(tensors=1, body=text(b"t") + struct.pack("<IQIQ", 1, 33, 8, 0)), "shape"),
        (gguf_bytes(tensors=1, body=text(b"t") + struct.pack("<IQIQ", 1, 1 << 60, 0, 0)), "'t'"),
        (gguf_bytes(tensors=1, body=text(b"t") + struct.pack("<IQIQ", 1, 4, 0, 1 << 63)), "'t'"),
        (gguf_bytes(tensors=1, body=text(b"t") + struct.pack("<IQIQ", 1, 4, 12345, 0)), "12345"),
        (gguf_bytes(tensors=2, body=(text(b"t") + struct.pack("<IQIQ", 1, 4, 0, 0)) * 2), "one name"),
        (gguf_bytes(), "architecture ''"),
        (gguf_bytes(keys=1, body=ARCH.replace(text(b"llama"), ESCAPE)), "'../../etc'"),
        (gguf_bytes(keys=1, body=ARCH), "token_embd"),
    ],
)  # fmt: skip
def test_absurd_gguf_headers(data, word, tmp_path):
    """Refused at once, whatever sizes the header claims: nothing is allocated on its word."""
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(LineaheadError) as caught:
        load_source(path)
    assert "m.gguf" in str(caught.value)
    assert word in str(caught.value)


def test_any_gguf_header_with_a_few_bytes_changed(original, tmp_path):
    """Parsed or refused, and never anything else."""
    import random

    path = tiny_gguf(original, tmp_path)
    data = path.read_bytes()
    end = min(tensor.start for tensor in open_gguf(path).tensors.values())
    random.seed(0)
    refusals = 0
    for _ in range(300):
        spoiled = bytearray(data)
        for _ in range(random.randint(1, 3)):
            spoiled[
                random.choice(
                    [random.randrange(end), random.randrange(400), random.randrange(end - 900, end)]
                )
            ] = random.randrange(256)
        path.write_bytes(spoiled)
        try:
            open_gguf(path)
        except CheckpointError:
            refusals += 1
    assert refusals > 50


def test_gguf_weights_that_are_not_numbers(original, tmp_path):
    def spoil(name, values):
        if name == "blk.1.ffn_up.weight":
            values[2, 2] = float("nan")
        return values

    refused(
        CheckpointError,
        "m.gguf",
        "'blk.1.ffn_up.weight'",
        "NaN",
        reference=tiny_gguf(original, tmp_path, change=spoil),
    )


def test_gguf_without_a_tokenizer(original, tmp_path):
    path = tiny_gguf(original, tmp_path, with_tokenizer=False)
    refused(CheckpointError, "m.gguf", "tokenizer", reference=path)
    assert load_source(path, tokenizer=original).tokenizer("a").input_ids


def test_gguf_with_a_pre_tokenizer_that_is_not_known(original, tmp_path):
    path = tiny_gguf(original, tmp_path, pre="elvish")
    refused(CheckpointError, "m.gguf", "'elvish'", reference=path)


def test_gguf_with_scaled_positions(original, tmp_path):
    path = tiny_gguf(original, tmp_path, extra=[("llama.rope.scaling.type", "yarn")])
    refused(ArchitectureError, "m.gguf", "yarn", reference=path)


def test_gguf_with_unknown_rotary_factors(original, tmp_path):
    path = tiny_gguf(original, tmp_path, factors=[1.0, 2.0, 3.0, 4.0])
    refused(ArchitectureError, "m.gguf", "rope_freqs", reference=path)


def test_gguf_with_a_tensor_that_has_no_place(original, tmp_path):
    path = tiny_gguf(original, tmp_path)
    data = path.read_bytes()
    assert data.count(b"blk.1.ffn_gate.weight") == 1
    path.write_bytes(data.replace(b"blk.1.ffn_gate.weight", b"blk.1.ffn_gaze.weight"))
    refused(ArchitectureError, "'blk.1.ffn_gaze.weight'", reference=path)


def test_gguf_without_a_tensor(original, tmp_path):
    path = tiny_gguf(original, tmp_path)
    path.write_bytes(path.read_bytes().replace(b"blk.1.ffn_gate.weight", b"blk.7.ffn_gate.weight"))
    with pytest.raises(LineaheadError, match=r"m\.gguf"):
        load_source(path)
