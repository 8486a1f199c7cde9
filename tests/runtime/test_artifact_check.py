"""An artifact folder whose parts do not belong together is named, with the command that mends it."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models

from lineahead.errors import ArtifactError
from lineahead.recipes.files import sha256
from lineahead.recipes.manifest import Base, Draft, Export, Manifest, Model, write_manifest
from lineahead.runtime import artifact_check
from lineahead.runtime.artifact_check import examine_artifact

SETTINGS = {"window": 64}
LAYERS = [{"index": index, "settings": SETTINGS} for index in range(2)]
MODEL = Model(
    vocab_size=4,
    hidden_size=8,
    layers=2,
    linear_layers=(0, 1),
    settings=SETTINGS,
    parameters=1,
    new_parameters=1,
    state_bytes=1,
)


@pytest.fixture
def folder(tmp_path):
    """A complete artifact, as far as its files can tell."""
    graph = tmp_path / "onnx" / "verifier.onnx"
    graph.parent.mkdir()
    graph.write_bytes(b"graph")
    weights = graph.with_name("verifier.onnx.data")
    weights.write_bytes(b"weights")
    export = Export(
        file="onnx/verifier.onnx",
        kind="verifier",
        precision="fp32",
        opset=21,
        bytes=12,
        sha256=sha256(graph),
        data_sha256=sha256(weights),
    )
    draft = Draft(
        folder="draft", kind="medusa", heads=1, vocabulary=4, tokens=1, data_hash="", top1=(), top5=()
    )
    base = Base(reference="some/model", model_type="llama")
    write_manifest(tmp_path, Manifest(base=base, recipe={}, model=MODEL, exports=(export,), drafts=(draft,)))
    (tmp_path / "config.json").write_text(json.dumps({"lineahead": {"version": 1, "layers": LAYERS}}))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "draft").mkdir()
    for path in (tmp_path, tmp_path / "draft"):
        save_file({"weight": np.zeros((4, 8), np.float32)}, path / "model.safetensors")
    return tmp_path


def problems(folder):
    found = {one.check: one for one in examine_artifact(folder) if one.status == "problem"}
    assert all(one.cure for one in found.values())
    return found


def test_a_whole_artifact_has_no_problem(folder):
    assert not problems(folder)


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("lineahead.json", "manifest"),
        ("config.json", "config.json"),
        ("model.safetensors", "weights"),
        ("tokenizer.json", "tokenizer"),
        ("draft/model.safetensors", "draft draft"),
        ("onnx/verifier.onnx", "onnx/verifier.onnx"),
        ("onnx/verifier.onnx.data", "onnx/verifier.onnx"),
    ],
)
@pytest.mark.parametrize("fault", ["missing", "truncated", "garbage"])
def test_each_missing_or_damaged_file_is_named(folder, name, check, fault):
    path = folder / name
    if fault == "missing":
        path.unlink()
    elif fault == "truncated":
        path.write_bytes(path.read_bytes()[:-3])
    else:
        path.write_bytes(b"\xff" * path.stat().st_size)
    assert check in problems(folder)


@pytest.mark.parametrize("layers", [LAYERS[:1], [LAYERS[0], {"index": 1, "settings": {"window": 32}}]])
def test_settings_that_differ_from_the_manifest_are_a_problem(folder, layers):
    (folder / "config.json").write_text(json.dumps({"lineahead": {"version": 1, "layers": layers}}))
    assert "differ" in problems(folder)["config.json"].detail


def test_a_tokenizer_larger_than_the_embedding_is_a_problem(folder):
    words = {str(number): number for number in range(9)}
    Tokenizer(models.WordLevel(words, unk_token="0")).save(str(folder / "tokenizer.json"))
    assert "9 tokens" in problems(folder)["tokenizer"].detail


def test_an_opset_that_this_onnxruntime_cannot_read_is_a_problem(folder, monkeypatch):
    monkeypatch.setattr(artifact_check, "_newest_opset", lambda: 20)
    found = problems(folder)["onnx/verifier.onnx"]
    assert "opset 21" in found.detail
    assert "--opset 20" in found.cure


def test_the_installed_onnxruntime_reads_our_opset():
    assert artifact_check._newest_opset() >= 21


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ArtifactError, match="absent"):
        examine_artifact(tmp_path / "absent")
