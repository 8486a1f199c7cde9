"""The card says what the manifest says, the example is run, and what must not be published is not."""

import json

import pytest
from huggingface_hub import ModelCard

from lineahead.convert.hub.contents import belongs
from lineahead.convert.hub.licence import inherited
from lineahead.errors import InputError
from lineahead.recipes.manifest import read_manifest, write_manifest

REPO = "me/model"


def test_the_card_of_an_artifact(run, artifact):
    certificate = {
        "identical": True,
        "defects": 0,
        "near_ties": 3,
        "prompts": 20,
        "drafters": ["lookup", "medusa"],
        "created": "2026-11-26",
    }
    (artifact / "certificate.json").write_text(json.dumps(certificate))
    done = run(
        "card", artifact, REPO, "--base-model", "base/original", "--dataset", "some/text", "--prompt", "abc d"
    )
    assert done.exit_code == 0, done.stderr
    card = ModelCard.load(artifact / "README.md")
    header = card.data
    assert header.license == "apache-2.0"
    assert (header.base_model, header.base_model_relation) == ("base/original", "finetune")
    assert (header.library_name, header.pipeline_tag) == ("transformers", "text-generation")
    assert header.datasets == ["some/text"]
    results = {one.metric_type: one.metric_value for one in header.eval_results}
    assert results == {"perplexity": 11.5, "bits_per_byte": 1.1}
    assert "| text.txt | 128 | 1000 | 10.00 | 11.50 |" in card.content
    assert "over 20 prompts and the drafters lookup, medusa" in card.content
    assert "identical to plain decoding, token for token" in card.content
    assert "it printed:\n\n~~~~text\na b c" in card.content
    assert "compared in the same run" in card.content
    assert str(artifact.parent) not in card.content
    for command in ("lineahead convert base/original model", f"lineahead push model {REPO}"):
        assert command in card.content
    assert read_manifest(artifact).logits is not None


def test_a_card_of_ones_own_stays(run, artifact):
    (artifact / "README.md").write_text("---\nlicense: apache-2.0\n---\nmine")
    done = run("card", artifact, REPO, "--no-trial")
    assert done.exit_code == 0
    assert "your own" in done.stderr
    assert (artifact / "README.md").read_text().endswith("mine")


def test_changed_weights_are_found_by_their_logits(run, artifact):
    from safetensors.torch import load_file, save_file

    path = artifact / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] *= 1.01
    save_file(tensors, path, metadata={"format": "pt"})
    done = run("card", artifact, REPO)
    assert done.exit_code == 5
    assert "changed since it was made" in done.stderr
    manifest = read_manifest(artifact)
    write_manifest(artifact, manifest.model_copy(update={"files": {}}))
    done = run("card", artifact, REPO, "--prompt", "abc")
    assert done.exit_code == 13
    assert "logits differ from the manifest's by 1.0e-02" in done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: (a / "notes.txt").write_text("x"), "notes.txt: not a part"),
        (lambda a: (a / "pytorch_model.bin").write_text("x"), "pytorch_model.bin: not a part"),
        (lambda a: (a / ".config.json.1234.tmp").write_text("x"), "not a part"),
        (lambda a: (a / "LICENSE").symlink_to("/etc/hostname"), "link to outside"),
        (lambda a: (a / "tokenizer.json").unlink(), "tokenizer.json: missing"),
        (lambda a: (a / "modeling_lineahead.py").write_text("import os"), "changed since"),
        (lambda a: (a / "draft/model.safetensors").write_bytes(b"short"), "draft/model.safetensors: damaged"),
        (lambda a: (a / "certificate.json").write_text('{"identical": true}'), "no 'defects'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_as_it_was_made_is_not_published(run, artifact, change, message):
    change(artifact)
    done = run("card", artifact, REPO, "--no-trial")
    assert done.exit_code in (3, 5), done.stderr
    assert message in done.stderr


def test_a_certificate_of_other_files_is_refused(run, artifact):
    keys = {"identical": True, "defects": 0, "near_ties": 0, "prompts": 1, "drafters": [], "created": ""}
    (artifact / "certificate.json").write_text(json.dumps({**keys, "hashes": {"config.json": "0" * 64}}))
    done = run("card", artifact, REPO, "--no-trial")
    assert done.exit_code == 5
    assert "made of another config.json" in done.stderr


@pytest.mark.parametrize(
    ("stated", "options", "expected"),
    [
        ("Apache-2.0", {}, "apache-2.0"),
        ("Apache License 2.0", {}, "apache-2.0"),
        (None, {"given": "mit"}, "mit"),
        ("other", {"given": "other", "name": "house", "link": "https://example.com"}, "other"),
        ("llama3.2", {}, "llama3.2"),
        (None, {}, "pass --license"),
        ("house rules", {}, "house rules"),
        ("apache-2.0", {"given": "mit"}, "inherits"),
        ("cc-by-nc-nd-4.0", {}, "no derived models"),
        (None, {"given": "free"}, "not an identifier"),
        ("other", {}, "name and text"),
    ],
)
def test_licences(tmp_path, stated, options, expected):
    try:
        found = inherited(stated, tmp_path, **options).identifier
    except InputError as error:
        found = f"{error} {error.hint}"
    assert expected in found


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("onnx/verifier.onnx", True),
        ("onnx/deep/verifier.onnx", False),
        ("model-00001-of-00002.safetensors", True),
        ("draft/model.safetensors", True),
        ("other/model.safetensors", False),
        ("setup.py", False),
        ("custom_generate/generate.py", True),
        ("custom_generate/requirements.txt", False),
    ],
)
def test_parts(path, expected):
    assert belongs(path) == expected
