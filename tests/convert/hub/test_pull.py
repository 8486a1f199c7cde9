"""Pull from a loopback Hub: the same folder, whatever happens on the way, and nothing else."""

import hashlib
import json
import subprocess
import sys

import pytest

REPO = "me/model"


@pytest.fixture
def published(run, online, artifact):
    """The artifact, pushed."""
    done = run("push", "--no-trial", artifact, REPO)
    assert done.exit_code == 0, done.stderr
    return online


def contents_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_was_pushed_comes_back(run, published, artifact, tmp_path):
    published.commit(REPO, "main", {"weights.bin": b"a pickle", "plot.png": b"picture"})
    done = run("pull", "--json", REPO, tmp_path / "back")
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert contents_of(tmp_path / "back") == contents_of(artifact)
    assert result["left"] == ["plot.png", "weights.bin"]
    assert result["own_code"]
    assert not published.requests("weights.bin")
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("pattern", "kind"),
    [
        ("resolve/.*/model.safetensors", "short"),
        ("GET .*/resolve/.*/model.safetensors", 503),
        ("GET .*/tree/", 429),
        ("GET /api/models/me/model/revision", "cut"),
    ],
)
def test_faults_are_waited_out(run, published, artifact, tmp_path, waits, pattern, kind):
    fault = published.fault(pattern, kind)
    done = run("pull", REPO, tmp_path / "back")
    assert done.exit_code == 0, done.stderr
    assert fault.times == 0
    assert contents_of(tmp_path / "back") == contents_of(artifact)


def test_an_interrupted_download_goes_on(hub, run, published, artifact, tmp_path, environment):
    stuck = published.fault("GET .*/resolve/.*/model.safetensors", "hang")
    command = [sys.executable, "-m", "lineahead.cli", "pull", REPO, str(tmp_path / "back")]
    process = subprocess.Popen(command, env=environment, stdout=-1, stderr=-1)
    try:
        assert stuck.reached.wait(120)
    finally:
        process.kill()
        process.communicate()
        stuck.release.set()
    assert not (tmp_path / "back").exists()
    before = len(published.requests("GET .*/resolve/.*/draft/model.safetensors"))
    assert run("pull", REPO, tmp_path / "back").exit_code == 0
    assert contents_of(tmp_path / "back") == contents_of(artifact)
    assert len(published.requests("GET .*/resolve/.*/draft/model.safetensors")) in (before, before + 1)


def test_revisions(run, published, artifact, tmp_path):
    first = published.repos[REPO].branches["main"]
    (artifact / "generation_config.json").write_text("{}")
    run("push", "--no-trial", artifact, REPO)
    assert run("pull", REPO, tmp_path / "old", "--revision", first).exit_code == 0
    assert run("pull", REPO, tmp_path / "new").exit_code == 0
    assert (tmp_path / "new/generation_config.json").read_text() == "{}"
    assert (tmp_path / "old/generation_config.json").read_text() != "{}"
    done = run("pull", REPO, tmp_path / "none", "--revision", "nowhere")
    assert done.exit_code == 13
    assert "no such revision" in done.stderr


@pytest.mark.parametrize(
    "name", ["model.safetensors", "modeling_lineahead.py", "config.json", "onnx/extra.onnx"]
)
def test_a_repository_that_was_tampered_with_is_refused(run, published, tmp_path, name):
    tree = published.commits[published.repos[REPO].branches["main"]].files
    content = published.content(tree[name]) if name in tree else b"graph"
    changed = content[:-8] + b"tampered" if name in tree else content
    published.commit(REPO, "main", {name: changed})
    done = run("pull", REPO, tmp_path / "back")
    assert done.exit_code == 5
    assert f"me/model@{published.repos[REPO].branches['main'][:8]}/{name}" in done.stderr
    assert not (tmp_path / "back").exists()
    assert not list(tmp_path.glob(".back*"))


def test_gated_private_missing_and_foreign_repositories(run, published, tmp_path, monkeypatch):
    published.create("me/gated", gated=True)
    published.create("me/hidden", private=True)
    published.create("me/other")
    for repo, message in [
        ("me/nothing", "not there"),
        ("me/other", "not an artifact"),
        ("not a name", "not a repository name"),
    ]:
        done = run("pull", repo, tmp_path / "back")
        assert done.exit_code == 13, done.stderr
        assert message in done.stderr
    monkeypatch.delenv("HF_TOKEN")
    for repo, message in [("me/gated", "agreement"), ("me/hidden", "no token was found")]:
        done = run("pull", repo, tmp_path / "back")
        assert done.exit_code == 13
        assert message in done.stderr
        assert "hf auth login" in done.stderr
    assert not (tmp_path / "back").exists()


def test_folders_that_are_there(run, published, artifact, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    done = run("pull", REPO, tmp_path / "mine", "--overwrite")
    assert done.exit_code == 8
    assert (tmp_path / "mine/thesis.txt").exists()
    assert run("pull", REPO, artifact).exit_code == 8
    (artifact / "config.json").write_text("{}")
    assert run("pull", REPO, artifact, "--overwrite").exit_code == 0
    assert (artifact / "config.json").read_text() != "{}"


def test_offline_it_comes_from_the_cache(run, published, artifact, tmp_path, monkeypatch):
    from huggingface_hub import constants, snapshot_download

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    done = run("pull", REPO, tmp_path / "back")
    assert done.exit_code == 13
    assert "HF_HUB_OFFLINE" in done.stderr
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    snapshot_download(REPO, cache_dir=constants.HF_HUB_CACHE)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", constants.HF_HUB_CACHE)
    published.log.clear()
    done = run("pull", REPO, tmp_path / "back")
    assert done.exit_code == 0, done.stderr
    assert contents_of(tmp_path / "back") == contents_of(artifact)
    assert not published.log
    assert hashlib.sha256((tmp_path / "back/model.safetensors").read_bytes()).hexdigest()
