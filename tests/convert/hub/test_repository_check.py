"""`lineahead doctor OWNER/NAME` against a loopback Hub: what is missing is named, and no weights are read."""

import json

import pytest

from lineahead.runtime.remote_check import NEEDED

REPO = "me/model"


def findings(run, status):
    done = run("doctor", "--json", REPO)
    told = json.loads(done.stdout)
    broken = {one["check"]: one for one in told["findings"] if one["status"] == "problem"}
    assert done.exit_code == status == int(not told["healthy"]), broken
    return {one["check"]: one for one in told["findings"]}, broken


@pytest.fixture
def published(run, online, artifact):
    """The artifact, pushed."""
    done = run("push", "--no-trial", artifact, REPO)
    assert done.exit_code == 0, done.stderr
    return online


def test_what_was_pushed_is_whole(run, published):
    found, _ = findings(run, 0)
    assert found["manifest"]["status"] == found["files"]["status"] == "ok"
    assert published.repos[REPO].branches["main"] in found["manifest"]["detail"]
    assert not published.requests("resolve/.*safetensors")


@pytest.mark.parametrize("name", [*NEEDED, "model.safetensors"])
def test_a_file_that_went_is_named(run, published, name):
    published.commit(REPO, "main", {}, deleted=[name])
    _, broken = findings(run, 1)
    assert name in broken["files"]["detail"]
    assert REPO in broken["files"]["cure"]


def test_a_graph_that_is_not_the_one_of_the_manifest_is_named(run, published, artifact):
    from lineahead.recipes.manifest import Export, read_manifest, write_manifest

    export = Export(file="onnx/verifier.onnx", sha256="1" * 64, kind="verifier", precision="fp32", opset=21)
    write_manifest(artifact, read_manifest(artifact).model_copy(update={"exports": (export,)}))
    manifest = (artifact / "lineahead.json").read_bytes()
    published.commit(REPO, "main", {"lineahead.json": manifest})
    assert "missing" in findings(run, 1)[1][export.file]["detail"]
    published.commit(REPO, "main", {export.file: ("lfs", "2" * 64, 5)})
    assert "not the file" in findings(run, 1)[1][export.file]["detail"]
    published.commit(REPO, "main", {export.file: ("lfs", "1" * 64, 5)})
    assert findings(run, 0)[0][export.file]["status"] == "ok"


def test_a_repository_that_is_none_of_ours_and_one_that_is_not_there(run, published):
    published.commit(REPO, "main", {}, deleted=["lineahead.json"])
    _, broken = findings(run, 1)
    assert "lineahead push" in broken["manifest"]["cure"]
    done = run("doctor", "me/absent")
    assert done.exit_code != 0
    assert "me/absent: cannot be read" in done.stderr
