"""Input that cannot be used: one line that names the file, tensor or key, and the cure."""

import errno
import json
import struct
import sys

import pytest
import torch
from refusals import cut, refused
from safetensors.torch import load_file, save_file

from lineahead.convert import locate
from lineahead.convert.source import load_source
from lineahead.errors import (
    ArchitectureError,
    CheckpointError,
    InputError,
    RecipeError,
    StorageError,
)

BIGGEST = (1 << 64) - 1


def edit(path, **changes):
    data = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            data.pop(key, None)
        else:
            data[key] = value
    path.write_text(json.dumps(data))


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


@pytest.mark.parametrize(
    ("text_", "word"),
    [
        ("method: {preset: augmented}\nmethodd: 3\n", "methodd"),
        ("method: [1, 2\n", ""),
        ("- a\n- b\n", ""),
        ("method: {window: 0}\n", "method.window"),
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
