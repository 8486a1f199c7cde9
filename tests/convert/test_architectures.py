"""Measured architectures: real outcomes, guarded."""

import json
import multiprocessing
import time

import pytest

from lineahead.convert import architectures
from lineahead.convert.architectures import Row, load_rows, measure_architectures, model_types, save_rows
from lineahead.convert.tiny_models import measure


@pytest.mark.parametrize(
    "name", ["llama", "gpt2", "qwen3", "gemma3_text", "opt", "mixtral", "phi3", "deepseek_v3"]
)
def test_exact(name):
    found = measure(name, architectures.BOUND)
    assert found["status"] == "exact", found
    assert found["layers"] == 2
    assert found["error"] < 1e-5


@pytest.mark.parametrize(("name", "reason"), [("bloom", "never calls"), ("qwen3_next", "recurrent state")])
def test_refused_with_a_reason(name, reason):
    found = measure(name, architectures.BOUND)
    assert found["status"] == "refused"
    assert reason in found["reason"]


def test_a_wrong_operator_is_not_exact(monkeypatch):
    from lineahead.plugins.augmented_attention.huggingface.cache import StateLayer

    attend = StateLayer.attend
    monkeypatch.setattr(StateLayer, "attend", lambda *a: attend(*a) * 1.01)
    assert measure("llama", architectures.BOUND)["status"] == "inexact"


def test_rows_come_from_guarded_processes():
    seen = []
    rows = measure_architectures(
        ["mpt", "llama"], lambda row, done, total: seen.append((done, total)), workers=1
    )
    assert [(row.model_type, row.status) for row in rows] == [("llama", "exact"), ("mpt", "refused")]
    assert seen == [(1, 2), (2, 2)]


class Process:
    """Stands for a worker's process."""

    killed = False

    def kill(self):
        self.killed = True

    def join(self):
        pass


@pytest.mark.parametrize(("dies", "reason"), [(False, "took over 60 s"), (True, "the process died")])
def test_a_type_that_hangs_or_dies_fails(dies, reason):
    ours, theirs = multiprocessing.Pipe()
    worker = architectures._Worker(process=Process(), pipe=ours, name="slow", since=time.monotonic() - 61)
    if dies:
        theirs.close()
    row = architectures._answer(worker, 60.0)
    assert (row.model_type, row.status) == ("slow", "failed")
    assert reason in row.reason
    assert worker.process.killed


def test_a_type_at_work_is_waited_for():
    ours, theirs = multiprocessing.Pipe()
    worker = architectures._Worker(process=Process(), pipe=ours, name="busy", since=time.monotonic())
    assert architectures._answer(worker, 60.0) is None
    theirs.close()


def test_saved_rows_hold_for_their_versions_only(tmp_path):
    file, rows = tmp_path / "rows.json", [Row(model_type="llama", status="exact", error=1e-6, layers=2)]
    assert load_rows(file) is None
    save_rows(file, rows)
    assert load_rows(file) == rows
    data = json.loads(file.read_text())
    file.write_text(json.dumps({**data, "transformers": "4.0.0"}))
    assert load_rows(file) is None


def test_all_types_are_known():
    assert len(model_types()) > 150
    assert {"llama", "gpt2", "gemma3_text"} <= set(model_types())
