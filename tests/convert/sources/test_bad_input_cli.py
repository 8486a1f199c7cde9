"""Bad input through the command line: one Error line, its exit code, and nothing half-written."""

import errno
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from lineahead.convert.gguf.file import open_gguf


def fails(run, folder, *arguments, code, words=(), **options):
    """Run a command that must fail, and check its manners; `folder` must hold what it held before."""
    before = listing(folder)
    result = run(*arguments, **options)
    check_manners(result.exit_code, result.stdout, result.stderr, code, words)
    assert listing(folder) == before
    return result


def listing(folder):
    return {path.relative_to(folder): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def check_manners(exit_code, stdout, stderr, code, words):
    errors = [line for line in stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, stderr
    assert "Traceback" not in stderr
    assert exit_code == code, stderr
    assert not stdout
    for word in words:
        assert word in errors[0], stderr
    assert [line for line in stderr.splitlines() if line.startswith("Hint: ")], stderr


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def put_nan(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][3] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def drop_tokenizer(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()


def rename_type(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "flux_9000"}))


def pickle_weights(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "code", "word"),
    [
        (truncate, 3, "truncated"),
        (put_nan, 3, "'model.norm.weight'"),
        (drop_tokenizer, 3, "tokenizer"),
        (rename_type, 4, "'flux_9000'"),
        (pickle_weights, 3, "pytorch_model.bin"),
        (lambda folder: (folder / "config.json").unlink(), 3, "config.json"),
    ],
    ids=["truncated", "nan", "no-tokenizer", "unknown-architecture", "pickle", "no-config"],
)
def test_checkpoints(damage, code, word, run, checkpoint, tmp_path):
    damage(checkpoint)
    fails(run, tmp_path, "convert", checkpoint, tmp_path / "out", code=code, words=[word])


@pytest.mark.parametrize(
    ("source", "code", "word"),
    [
        ("./nowhere", 8, "nowhere"),
        ("nobody/nothing", 3, "HF_HUB_OFFLINE"),
        ("package:no-such-package", 8, "no-such-package"),
        ("no.gguf", 8, "no.gguf"),
    ],
)
def test_references(source, code, word, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--cache-dir", tmp_path / "cache"]
    fails(run, tmp_path, "convert", source, tmp_path / "out", *options, code=code, words=[word])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("method.windoww=3", ["windoww"]),
        ("method.local=none", ["local", "pattern"]),
        ("method.preset=no-such", ["no-such"]),
        ("method.feature_map=no-such", ["no-such"]),
        ("method.window=0", ["window"]),
        ("layers=[7]", ["7"]),
        ("nonsense", ["nonsense"]),
    ],
)
def test_recipes(override, words, run, original, tmp_path):
    code = 8 if override.startswith("layers") else 2
    fails(run, tmp_path, "convert", original, tmp_path / "out", override, code=code, words=words)


def test_a_recipe_file_with_an_unknown_key(run, original, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("method: {preset: augmented}\nmethodd: {}\n")
    arguments = ["convert", original, tmp_path / "out", "--recipe", recipe]
    fails(run, tmp_path, *arguments, code=2, words=["mine.yaml", "methodd"])


def test_an_output_folder_that_is_something_else(run, original, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("meow")
    fails(run, tmp_path, "convert", original, tmp_path / "photos", code=5, words=["photos"])


def breaking_off(monkeypatch, error):
    """Let saving write half of its weights, and then fail."""

    def save(self, folder, *args, **kwargs):
        (folder / "model.safetensors").write_bytes(b"half")
        raise error

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save)


@pytest.mark.parametrize(
    ("error", "code", "word"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 11, "no space left"),
        (OSError(errno.EACCES, os.strerror(errno.EACCES)), 11, "cannot write"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=["full-disk", "read-only", "ctrl-c"],
)
def test_nothing_half_written(error, code, word, run, original, tmp_path, monkeypatch):
    breaking_off(monkeypatch, error)
    fails(run, tmp_path, "convert", original, tmp_path / "out", code=code, words=[word])
    assert not (tmp_path / "out").exists()


def test_an_artifact_that_is_there_survives_a_failure(run, original, tmp_path, monkeypatch):
    assert run("convert", original, tmp_path / "out").exit_code == 0
    breaking_off(monkeypatch, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    fails(run, tmp_path, "convert", original, tmp_path / "out", code=11)
    from lineahead.convert.checkpoint import load_artifact

    monkeypatch.undo()
    load_artifact(tmp_path / "out")


@pytest.fixture
def artifact(run, original, tmp_path):
    result = run("convert", original, tmp_path / "artifact")
    assert result.exit_code == 0, result.output
    return tmp_path / "artifact"


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt(prompt, run, artifact, tmp_path):
    arguments = ["generate", artifact, "--backend", "eager", "--raw", "-p", prompt]
    fails(run, tmp_path, *arguments, code=8, words=["prompt"])


def test_a_prompt_beyond_the_position_table(run, artifact, tmp_path):
    arguments = ["generate", artifact, "--backend", "eager", "--raw", "-p", "1 " * 200]
    fails(run, tmp_path, *arguments, code=8, words=["position", "128"])


@pytest.mark.parametrize(
    "command", [["generate", "-p", "hi"], ["finetune"], ["draft"], ["eval"], ["verify"], ["bench"]]
)
def test_folders_that_are_no_artifact(command, run, original, tmp_path):
    name, *options = command
    fails(run, tmp_path, name, original, *options, code=5)
    fails(run, tmp_path, name, tmp_path / "nowhere", *options, code=5, words=["nowhere"])


@pytest.mark.parametrize(
    "command", [["generate", "--backend", "eager", "--raw", "-p", "hi"], ["eval"], ["finetune"]]
)
def test_a_damaged_artifact(command, run, artifact, tmp_path):
    name, *options = command
    truncate(artifact)
    (tmp_path / "text.txt").write_text("the quick brown fox " * 20)
    if name == "eval":
        options = [tmp_path / "text.txt"]
    result = run(name, artifact, *options)
    check_manners(result.exit_code, result.stdout, result.stderr, 3, ["model.safetensors"])


def test_a_real_process(original, tmp_path):
    """As a user sees it: no traceback, no warning, nothing but the two lines."""
    truncated = tmp_path / "t.gguf"
    truncated.write_bytes(b"GGUF\3\0\0\0" + b"\xff" * 16)
    arguments = [sys.executable, "-m", "lineahead.cli", "convert", truncated, tmp_path / "out"]
    done = subprocess.run([str(one) for one in arguments], capture_output=True, text=True, timeout=120)
    assert len(done.stderr.splitlines()) == 2, done.stderr
    check_manners(done.returncode, done.stdout, done.stderr, 3, ["t.gguf"])
    with pytest.raises(Exception, match=r"t\.gguf"):
        open_gguf(truncated)
