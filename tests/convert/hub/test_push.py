"""Push against a loopback Hub: one commit or none, whatever happens on the way."""

import hashlib
import json
import subprocess
import sys

import pytest

REPO = "me/model"
PUSH = ("push", "--no-trial", "--json")


def digests(folder):
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


def shown(hub, branch="main"):
    """All trees that the branch ever showed, without the Hub's own file."""
    return [{k: v for k, v in tree.items() if k != ".gitattributes"} for tree in hub.visible(REPO, branch)]


def test_one_commit_holds_everything(run, online, artifact):
    done = run(*PUSH, artifact, REPO, "--private")
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert shown(online) == [{}, digests(artifact)]
    assert result["commit"] == online.repos[REPO].branches["main"]
    assert online.repos[REPO].private
    assert {one["status"] for one in result["files"]} == {"new", "kept"}
    entry = online.commits[result["commit"]].files
    assert isinstance(entry["model.safetensors"], tuple)
    assert isinstance(entry["config.json"], bytes)
    assert online.requests("PUT /storage/.*/2$")  # in parts
    assert "offers no Xet" in done.stderr


def test_a_second_push_sends_what_changed_and_deletes_what_went(run, online, artifact):
    assert run(*PUSH, artifact, REPO).exit_code == 0
    sent = len(online.uploaded)
    online.commit(REPO, "main", {"plot.png": b"mine", "onnx/old.onnx": b"old"})
    (artifact / "generation_config.json").write_text("{}")
    result = json.loads(run(*PUSH, artifact, REPO).stdout)
    status = {one["file"]: one["status"] for one in result["files"]}
    assert status["generation_config.json"] == "changed"
    assert status["onnx/old.onnx"] == "delete"
    assert status["plot.png"] == "kept"
    assert status["model.safetensors"] == "same"
    assert len(online.uploaded) == sent
    assert shown(online)[-1] == {**digests(artifact), "plot.png": hashlib.sha256(b"mine").hexdigest()}
    again = json.loads(run(*PUSH, artifact, REPO).stdout)
    assert again["commit"] == result["commit"]


def test_dry_run_lists_and_writes_nothing(run, online, artifact):
    rows = json.loads(run(*PUSH, "--dry-run", artifact, REPO).stdout)["files"]
    assert {row["status"] for row in rows} == {"new"}
    assert {row["file"]: row["storage"] for row in rows}["model.safetensors"] == "lfs"
    assert sum(row["bytes"] for row in rows) == sum(
        p.stat().st_size for p in artifact.rglob("*") if p.is_file()
    )
    assert not online.repos
    assert not online.requests("POST|PUT")


@pytest.mark.parametrize(
    ("pattern", "kind", "headers", "waited"),
    [
        ("POST /api/models/.*/commit", 429, {"Retry-After": "7"}, 7),
        ("POST /.*objects/batch", 429, {"Retry-After": "7"}, 8),
        ("POST /api/repos/create", 503, {}, None),
        ("PUT /storage/.*/2", 500, {}, None),
        ("PUT /storage/.*/2", "cut", {}, None),
        ("POST /complete", "cut", {}, None),
        ("POST /api/models/.*/commit", "cut", {}, None),
        ("POST /api/models/.*/commit", "lost", {}, None),
        ("POST /api/validate-yaml", 502, {}, None),
        ("GET /api/models/.*/tree", "cut", {}, None),
    ],
)
def test_faults_are_waited_out(run, online, artifact, waits, pattern, kind, headers, waited):
    fault = online.fault(pattern, kind, headers=headers)
    done = run(*PUSH, artifact, REPO)
    assert done.exit_code == 0, done.stderr
    assert fault.times == 0
    assert shown(online) == [{}, digests(artifact)]
    assert waits
    assert waited is None or waited in waits


@pytest.mark.parametrize("status", [429, 503])
def test_faults_that_stay_end_in_one_line(run, online, artifact, waits, status):
    online.fault("POST /api/models/.*/commit", status, times=99)
    done = run(*PUSH, artifact, REPO)
    assert done.exit_code == 13
    assert f"status {status}" in done.stderr
    assert "Traceback" not in done.stderr
    assert shown(online) == [{}]
    online.faults.clear()
    sent = len(online.uploaded)
    assert run(*PUSH, artifact, REPO).exit_code == 0
    assert len(online.uploaded) == sent  # nothing large twice


def test_a_long_rate_limit_is_told_not_slept(run, online, artifact, waits):
    online.fault("POST /api/models/.*/commit", 429, headers={"Retry-After": "3000"})
    done = run(*PUSH, artifact, REPO)
    assert done.exit_code == 13
    assert "3000 s" in done.stderr
    assert not waits


def test_a_branch_that_moved_is_followed(run, online, artifact):
    online.create(REPO)
    online.fault("/commit/main", lambda hub: hub.commit(REPO, "main", {"notes.txt": b"theirs"}))
    done = run(*PUSH, artifact, REPO)
    assert done.exit_code == 0, done.stderr
    theirs = {"notes.txt": hashlib.sha256(b"theirs").hexdigest()}
    assert shown(online) == [{}, theirs, {**digests(artifact), **theirs}]


@pytest.mark.parametrize("options", [(), ("--parent-commit",)])
def test_a_change_to_the_same_file_or_a_named_parent_is_not_overwritten(run, online, artifact, options):
    online.create(REPO)
    head = online.repos[REPO].branches["main"]
    path = "notes.txt" if options else "config.json"
    online.fault("/commit/main", lambda hub: hub.commit(REPO, "main", {path: b"theirs"}))
    done = run(*PUSH, artifact, REPO, *options, *([head] if options else []))
    assert done.exit_code == 13
    assert ("not at" if options else "config.json was changed") in done.stderr
    assert shown(online)[-1] == {path: hashlib.sha256(b"theirs").hexdigest()}


def test_pull_requests_and_branches_leave_main_alone(run, online, artifact):
    assert run(*PUSH, artifact, REPO, "--create-pr").exit_code == 13  # nothing to open one in
    online.create(REPO)
    asked = json.loads(run(*PUSH, artifact, REPO, "--create-pr").stdout)
    assert asked["pull_request"].endswith("/discussions/1")
    assert run(*PUSH, artifact, REPO, "--revision", "next").exit_code == 0
    assert shown(online) == [{}]
    assert shown(online, "refs/pr/1")[-1] == shown(online, "next")[-1] == digests(artifact)


def test_a_lost_answer_to_a_pull_request_is_not_repeated(run, online, artifact):
    online.create(REPO)
    online.fault("/commit/main", "lost")
    done = run(*PUSH, artifact, REPO, "--create-pr")
    assert done.exit_code == 13
    assert "Look whether it was opened" in done.stderr
    assert sum(ref.startswith("refs/pr/") for ref in online.repos[REPO].branches) == 1


def test_the_token_is_never_shown(hub, artifact, environment):
    hub.fault("PUT /storage/.*/2", 500)
    hub.fault("POST /api/models/.*/commit", 429)
    hub.fault("GET /api/models/.*/revision/[0-9a-f]{40}", 403)
    command = [sys.executable, "-m", "lineahead.cli", "-vv", *PUSH, str(artifact), REPO]
    environment["HF_DEBUG"] = "1"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 13, done.stderr
    everything = done.stdout + done.stderr
    assert "HTTP Error 500" in everything
    assert "forbidden" in everything
    assert environment["HF_TOKEN"] not in everything
    assert "sesame" not in everything


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.delenv("HF_TOKEN"), "no token"),
        (lambda m: m.setenv("HF_TOKEN", "hf_wrong"), "token"),
        (lambda m: m.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True), "HF_HUB_OFFLINE"),
        (
            lambda m: m.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9"),
            "cannot be reached",
        ),
    ],
    ids=["no token", "wrong token", "offline", "no network"],
)
def test_no_way_to_the_hub(run, online, artifact, monkeypatch, change, message):
    change(monkeypatch)
    done = run(*PUSH, artifact, REPO)
    assert done.exit_code == 13
    assert message in done.stderr
    assert "hf_wrong" not in done.stderr
    assert done.stderr.count("\nHint: ") == 1
    assert not online.repos


def test_someone_elses_and_public_repositories_are_refused(run, online, artifact):
    done = run(*PUSH, artifact, "them/model")
    assert done.exit_code == 13
    assert "forbidden" in done.stderr
    online.create(REPO)
    done = run(*PUSH, artifact, REPO, "--private")
    assert done.exit_code == 13
    assert "public" in done.stderr
    assert shown(online) == [{}]


def test_a_published_file_that_differs_is_noticed(run, online, artifact):
    def swallow(hub):
        commit = hub.commits[hub.repos[REPO].branches["main"]]
        commit.files["config.json"] = b"{}"

    online.fault("GET /api/models/.*/revision/[0-9a-f]{40}", swallow)
    done = run(*PUSH, artifact, REPO)
    assert done.exit_code == 13
    assert "config.json differs" in done.stderr
