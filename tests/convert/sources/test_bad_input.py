"""Input that cannot be used: one line that names the file, tensor or key, and the cure."""

import errno
import json
import struct
import sys

import pytest
import tiny_ggufs as ggufs
import torch
from safetensors.torch import load_file, save_file

from lineahead.convert import locate
from lineahead.convert.gguf.file import open_gguf
from lineahead.convert.source import load_source
from lineahead.errors import (
    ArchitectureError,
    CheckpointError,
    InputError,
    LineaheadError,
    RecipeError,
    StorageError,
)

BIGGEST = (1 << 64) - 1


def refused(kind, *words, **options):
    """What `load_source` says about a reference: an error of `kind`, in one line that holds all `words`."""
    reference = options.pop("reference")
    with pytest.raises(LineaheadError) as caught:
        load_source(reference, **options)
    error, message = caught.value, str(caught.value)
    assert type(error) is kind, f"{type(error).__name__}: {message}"
    assert "\n" not in message
    assert len(message) < 400, message
    assert error.hint, message
    assert error.hint.endswith((".", "`.")), error.hint
    for word in words:
        assert word in message, f"{word!r} is not in: {message}"
    return message


def edit(path, **changes):
    data = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            data.pop(key, None)
        else:
            data[key] = value
    path.write_text(json.dumps(data))


def cut(path, size):
    data = path.read_bytes()
    path.write_bytes(data[: size if size >= 0 else len(data) + size])


def reweigh(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("size", [-1, -4096, 200, 8, 5, 0])
def test_truncated_weights(size, checkpoint):
    cut(checkpoint / "model.safetensors", size)
    refused(CheckpointError, "model.safetensors", "truncated", reference=checkpoint)


def test_weights_with_something_behind_them(checkpoint):
    with (checkpoint / "model.safetensors").open("ab") as file:
        file.write(b"\0" * 64)
    refused(CheckpointError, "model.safetensors", reference=checkpoint)


@pytest.mark.parametrize("length", [BIGGEST, 1 << 40, 200_000_000])
def test_absurd_safetensors_header(length, checkpoint):
    path = checkpoint / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    refused(CheckpointError, "model.safetensors", reference=checkpoint)


def test_garbage_for_a_safetensors_header(checkpoint):
    path = checkpoint / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[8:40] = b"\xff" * 32
    path.write_bytes(data)
    refused(CheckpointError, "model.safetensors", "damaged", reference=checkpoint)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_numbers(value, checkpoint):
    def spoil(weights):
        weights["model.layers.1.mlp.up_proj.weight"][3, 5] = value

    reweigh(checkpoint, spoil)
    refused(
        CheckpointError,
        "model.safetensors",
        "'model.layers.1.mlp.up_proj.weight'",
        "NaN",
        reference=checkpoint,
    )


def test_a_missing_tensor_is_not_made_up(checkpoint):
    reweigh(checkpoint, lambda weights: weights.pop("model.layers.0.self_attn.k_proj.weight"))
    refused(CheckpointError, "'model.layers.0.self_attn.k_proj.weight'", reference=checkpoint)


def test_a_tensor_of_another_shape(checkpoint):
    def spoil(weights):
        weights["model.norm.weight"] = torch.ones(31)

    reweigh(checkpoint, spoil)
    refused(CheckpointError, "model.norm.weight", reference=checkpoint)


def test_a_tensor_of_another_shape_in_every_layer(checkpoint):
    edit(checkpoint / "config.json", intermediate_size=40)
    refused(CheckpointError, "mlp", reference=checkpoint)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "weights.ckpt"])
def test_pickles_are_not_opened(name, checkpoint):
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / name).write_bytes(b"cos\nsystem\n(S'touch /tmp/pwned'\ntR.")
    message = refused(CheckpointError, name, "pickled", reference=checkpoint)
    assert "run code" in message


def test_no_weights(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    refused(CheckpointError, "safetensors", str(checkpoint), reference=checkpoint)


def shard(checkpoint):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    model.save_pretrained(checkpoint, max_shard_size="60KB")
    return checkpoint / "model.safetensors.index.json"


def test_a_missing_shard(checkpoint):
    shard(checkpoint)
    gone = sorted(checkpoint.glob("*.safetensors"))[1]
    gone.unlink()
    refused(CheckpointError, gone.name, "missing", reference=checkpoint)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors"])
def test_an_index_that_points_elsewhere(name, checkpoint):
    index = shard(checkpoint)
    data = json.loads(index.read_text())
    data["weight_map"]["model.norm.weight"] = name
    index.write_text(json.dumps(data))
    refused(CheckpointError, index.name, name, reference=checkpoint)


def test_an_index_that_names_a_tensor_too_many(checkpoint):
    index = shard(checkpoint)
    data = json.loads(index.read_text())
    data["weight_map"]["model.layers.9.mlp.up_proj.weight"] = next(iter(data["weight_map"].values()))
    index.write_text(json.dumps(data))
    refused(CheckpointError, "'model.layers.9.mlp.up_proj.weight'", reference=checkpoint)


def test_no_tokenizer(checkpoint):
    for path in checkpoint.glob("tokenizer*"):
        path.unlink()
    refused(CheckpointError, str(checkpoint), "tokenizer", reference=checkpoint)


def test_only_half_a_tokenizer(checkpoint):
    (checkpoint / "tokenizer.json").unlink()
    refused(CheckpointError, "tokenizer", reference=checkpoint)


@pytest.mark.parametrize("text", ["", "{", '{"version": "1.0"}', "[]"])
def test_a_damaged_tokenizer(text, checkpoint):
    (checkpoint / "tokenizer.json").write_text(text)
    refused(CheckpointError, str(checkpoint), "tokenizer", reference=checkpoint)


def test_a_tokenizer_that_is_larger_than_the_embedding(checkpoint):
    tokenizer = load_source(checkpoint).tokenizer
    tokenizer.add_tokens([f"<new {i}>" for i in range(9)])
    tokenizer.save_pretrained(checkpoint)
    refused(CheckpointError, "329 tokens", "320 rows", reference=checkpoint)


def test_no_config(checkpoint):
    (checkpoint / "config.json").unlink()
    refused(CheckpointError, "config.json", "missing", reference=checkpoint)


@pytest.mark.parametrize("text", ["", "{", "[]", '"llama"', "\x00\xff"])
def test_a_damaged_config(text, checkpoint):
    (checkpoint / "config.json").write_text(text, encoding="latin-1")
    refused(CheckpointError, "config.json", "damaged", reference=checkpoint)


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"model_type": "hyena_dna_9000"}, ArchitectureError, ["'hyena_dna_9000'", "not known"]),
        ({"model_type": None}, ArchitectureError, ["None"]),
        ({"model_type": "clip"}, ArchitectureError, ["'clip'", "causal"]),
        ({"model_type": "lineahead"}, InputError, ["linear already"]),
        ({"quantization_config": {"quant_method": "gptq"}}, ArchitectureError, ["'gptq'"]),
        ({"hidden_size": "many"}, CheckpointError, ["config.json"]),
        ({"num_attention_heads": 5}, CheckpointError, []),
        ({"hidden_act": "tanhh"}, CheckpointError, []),
    ],
)  # fmt: skip
def test_configs_that_cannot_be_used(changes, kind, words, checkpoint):
    edit(checkpoint / "config.json", **changes)
    refused(kind, *words, reference=checkpoint)


def test_code_that_comes_with_a_model_does_not_run_unasked(checkpoint):
    mark = checkpoint / "ran"
    (checkpoint / "own.py").write_text(f"open({str(mark)!r}, 'w')\nraise RuntimeError('ran')\n")
    own = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    edit(checkpoint / "config.json", model_type="own_thing", auto_map=own)
    refused(ArchitectureError, "'own_thing'", reference=checkpoint)
    edit(checkpoint / "config.json", model_type="llama", auto_map=own)
    load_source(checkpoint)
    assert not mark.exists()


@pytest.mark.parametrize(
    "reference", ["./nowhere", "/no/such/folder", "a/b/c", "x.gguf", "~/nowhere-at-all", "a..b", "", "mödel"]
)
def test_paths_that_do_not_exist(reference, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if reference == "":
        refused(CheckpointError, "config.json", reference=reference)  # the current folder
    else:
        refused(InputError, reference, "no such", reference=reference)


@pytest.mark.parametrize("reference", ["someone/some-model", "gpt2-of-nobody"])
def test_a_hub_model_that_is_not_in_the_cache(reference, tmp_path):
    refused(CheckpointError, reference, "HF_HUB_OFFLINE", reference=reference, cache_dir=tmp_path)


def test_a_file_that_is_no_checkpoint(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    refused(InputError, "notes.txt", reference=tmp_path / "notes.txt")


def hub(monkeypatch, error):
    def download(*args, **kwargs):
        raise error

    monkeypatch.setattr(locate, "snapshot_download", download)


def http_error(kind, status=403):
    from huggingface_hub import errors

    request = http().Request("GET", "https://huggingface.co/x")
    return getattr(errors, kind)("first line\nsecond line", response=http().Response(status, request=request))


def http():
    """The HTTP library that huggingface_hub uses."""
    from huggingface_hub import errors

    return sys.modules[errors.HfHubHTTPError.__bases__[0].__module__.partition(".")[0]]


@pytest.mark.parametrize(
    ("kind", "expected", "word"),
    [
        ("GatedRepoError", CheckpointError, "agreement"),
        ("RepositoryNotFoundError", InputError, "neither"),
        ("RevisionNotFoundError", InputError, "'v9'"),
        ("HfHubHTTPError", CheckpointError, "first line"),
    ],
)  # fmt: skip
def test_what_the_hub_refuses(kind, expected, word, monkeypatch):
    hub(monkeypatch, http_error(kind))
    refused(expected, "some/model", word, reference="some/model", revision="v9")


def test_no_network(monkeypatch):
    hub(monkeypatch, http().ConnectError("refused"))
    refused(CheckpointError, "some/model", "cannot be reached", reference="some/model")


def test_a_full_disk_during_a_download(monkeypatch):
    hub(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    refused(StorageError, "no space left", reference="some/model")


@pytest.mark.parametrize(
    ("reference", "word"),
    [("package:", "no package"), ("package:no-such-thing", "'no-such-thing'"), ("package:numpy", ".gguf")],
)
def test_packages(reference, word):
    refused(InputError, word, reference=reference)


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


@pytest.mark.parametrize(
    ("text_", "word"),
    [
        ("method: {preset: augmented}\nmethodd: 3\n", "methodd"),
        ("method: [1, 2\n", ""),
        ("- a\n- b\n", ""),
        ("method: {pattern: ring}\n", "method.pattern"),
    ],
)
def test_recipes(text_, word, tmp_path):
    from lineahead.recipes.load import load_recipe

    path = tmp_path / "mine.yaml"
    path.write_text(text_)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert "mine.yaml" in str(caught.value)
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
