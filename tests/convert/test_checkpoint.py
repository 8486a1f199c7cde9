"""Artifact folders: complete or absent, and every kind of damage named."""

import errno

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lineahead.convert.checkpoint import check_weights, load_artifact, load_tokenizer, save_artifact
from lineahead.errors import ArtifactError, CheckpointError, StorageError
from lineahead.plugins.augmented_attention.huggingface.modeling import layers_of

WEIGHTS = "model.safetensors"


@pytest.fixture
def artifact(tiny_linear_llama, tiny_tokenizer, tmp_path):
    """A saved artifact."""
    return save_artifact(
        tiny_linear_llama, tiny_tokenizer, tmp_path / "made", layers=layers_of(tiny_linear_llama.config)
    )


def test_round_trip(artifact, tiny_linear_llama, tiny_tokenizer):
    model, tokenizer = load_artifact(artifact)
    ids = torch.arange(3, 90)[None]
    assert not model.training
    assert torch.equal(model(ids).logits, tiny_linear_llama(ids).logits)
    assert tokenizer("abc")["input_ids"] == tiny_tokenizer("abc")["input_ids"] == [64, 65, 66]
    assert sorted(path.name for path in artifact.iterdir()) == [
        "config.json", "custom_generate", "generation_config.json", WEIGHTS, "modeling_lineahead.py",
        "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip


def test_dtype(artifact):
    model, _ = load_artifact(artifact, dtype=torch.bfloat16)
    assert model.lm_head.weight.dtype == torch.bfloat16


def test_an_artifact_is_replaced_as_a_whole(artifact, tiny_linear_llama):
    (artifact / "draft").mkdir()
    save_artifact(tiny_linear_llama, None, artifact)
    assert not (artifact / "draft").exists()
    assert [path.name for path in artifact.parent.iterdir()] == ["made"]


def test_other_folders_are_not_overwritten(tiny_linear_llama, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ArtifactError, match="not an artifact"):
        save_artifact(tiny_linear_llama, None, tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_an_empty_folder_is_used(tiny_linear_llama, tmp_path):
    (tmp_path / "new").mkdir()
    save_artifact(tiny_linear_llama, None, tmp_path / "new")


def test_softmax_models_are_not_saved(tiny_llama, tmp_path):
    with pytest.raises(ArtifactError, match="not linear"):
        save_artifact(tiny_llama, None, tmp_path / "made")


def test_layers_must_be_the_models(tiny_linear_llama, tmp_path):
    with pytest.raises(ArtifactError, match="layers"):
        save_artifact(
            tiny_linear_llama, None, tmp_path / "made", layers=layers_of(tiny_linear_llama.config)[:1]
        )


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_leaves_nothing(artifact, tiny_linear_llama, monkeypatch, failure):
    before = (artifact / WEIGHTS).read_bytes()

    def fail(*arguments, **options):
        raise failure

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", fail)
    with pytest.raises(StorageError, match="no space left"):
        save_artifact(tiny_linear_llama, None, artifact)
    assert (artifact / WEIGHTS).read_bytes() == before
    assert [path.name for path in artifact.parent.iterdir()] == ["made"]


def test_truncated_weights(artifact):
    file = artifact / WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=f"{WEIGHTS}: truncated"):
        load_artifact(artifact)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers(artifact, value):
    weights = load_file(artifact / WEIGHTS)
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(weights, artifact / WEIGHTS, {"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"model.safetensors: tensor 'model.layers.1.mlp.up_proj.weight'"
    ):
        load_artifact(artifact)


def test_no_weights(tmp_path):
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors"):
        check_weights(tmp_path)


def test_no_tokenizer(artifact):
    for file in artifact.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="no usable tokenizer"):
        load_tokenizer(artifact)


@pytest.mark.parametrize("text", ["", "[1]", '{"model_type": "llama"}', '{"model_type":'])
def test_damaged_or_foreign_config(artifact, text):
    (artifact / "config.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"config\.json"):
        load_artifact(artifact)


def test_no_folder(tmp_path):
    with pytest.raises(ArtifactError, match=r"config\.json is missing"):
        load_artifact(tmp_path / "absent")
