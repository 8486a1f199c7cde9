"""The manifest: round trip, damage, and files from the future."""

import json

import pytest

from lineahead.errors import ArtifactError
from lineahead.recipes.manifest import (
    FILE,
    FORMAT,
    Base,
    Evaluation,
    Manifest,
    Model,
    read_manifest,
    write_manifest,
)


@pytest.fixture
def manifest():
    return Manifest(
        base=Base(reference="some/model", model_type="llama", files={"a": "b"}),
        recipe={"name": "x", "stages": [1, 2]},
        model=Model(
            vocab_size=10,
            hidden_size=4,
            layers=2,
            linear_layers=(0, 1),
            settings={"window": 8},
            parameters=100,
            new_parameters=10,
            state_bytes=64,
        ),
        evaluations=(
            Evaluation(
                file="t.txt",
                file_hash="0",
                context=8,
                stride=8,
                tokens=7,
                perplexity={"teacher": 2.0, "student": 2.5},
                bits_per_byte={"teacher": 1.0, "student": 1.1},
            ),
        ),
    )


def test_round_trip(tmp_path, manifest):
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def damage(folder, change):
    path = folder / FILE
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(format=FORMAT + 1), "Upgrade|format"),
        (lambda data: data.update(extra=1), "extra"),
        (lambda data: data["model"].pop("layers"), "model.layers"),
        (lambda data: data["base"].update(reference=[]), "base.reference"),
    ],
)
def test_damage_is_named(tmp_path, manifest, change, message):
    write_manifest(tmp_path, manifest)
    damage(tmp_path, change)
    with pytest.raises(ArtifactError, match=message) as caught:
        read_manifest(tmp_path)
    assert FILE in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("content", ["", "{", "[]", "3"])
def test_not_json(tmp_path, content):
    (tmp_path / FILE).write_text(content, encoding="utf-8")
    with pytest.raises(ArtifactError, match="damaged"):
        read_manifest(tmp_path)


def test_missing(tmp_path):
    with pytest.raises(ArtifactError, match="not an artifact"):
        read_manifest(tmp_path)
