"""A push killed in the middle, and the next one: nothing half-published is ever visible."""

import hashlib
import signal
import subprocess
import sys

import pytest

REPO = "me/model"


@pytest.fixture
def push(artifact, environment):
    """Start `lineahead push` in a process of its own."""

    def start():
        command = [sys.executable, "-m", "lineahead.cli", "push", "--no-trial", str(artifact), REPO]
        return subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True)

    return start


def test_a_push_killed_in_mid_upload_is_completed_by_the_next(hub, artifact, push):
    files = {p.relative_to(artifact).as_posix(): p for p in artifact.rglob("*") if p.is_file()}
    draft = hashlib.sha256(files["draft/model.safetensors"].read_bytes()).hexdigest()
    model = hashlib.sha256(files["model.safetensors"].read_bytes()).hexdigest()
    stuck = hub.fault(f"PUT /storage/{model}/3", "hang")
    process = push()
    try:
        assert stuck.reached.wait(120)
        assert (model, 2) in hub.parts
        deadline = 100
        while draft not in hub.uploaded and deadline:
            deadline -= 1
            stuck.release.wait(0.1)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    finally:
        process.kill()
        stuck.release.set()
    assert process.returncode == -signal.SIGKILL
    assert [set(tree) for tree in hub.visible(REPO)] == [{".gitattributes"}]
    assert not hub.requests("POST /api/models/.*/commit")
    second = push()
    out, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    whole = {
        name: hashlib.sha256((artifact / name).read_bytes()).hexdigest() for name in [*files, "README.md"]
    }
    trees = [{k: v for k, v in tree.items() if k != ".gitattributes"} for tree in hub.visible(REPO)]
    assert trees == [{}, whole]
    assert hub.uploaded.count(draft) == 1  # not sent again
    assert hub.uploaded.count(model) == 1
    assert REPO in out
