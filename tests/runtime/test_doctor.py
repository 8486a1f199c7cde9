"""Every problem that doctor names comes with its cure."""

import ctypes
from types import SimpleNamespace

import pytest

from lineahead.runtime import doctor


@pytest.fixture
def pretend(monkeypatch):
    """Replace what is installed."""

    def replace(**versions):
        have = {name.replace("_", "-"): version for name, version in versions.items()}
        monkeypatch.setattr(doctor, "installed", have.get)

    return replace


def by_check(findings):
    return {one.check: one for one in findings}


def test_everything_is_well_here():
    findings = doctor.examine_environment()
    assert not [one for one in findings if one.status == "problem"]
    assert len({one.check for one in findings}) == len(findings)


def test_two_flavours_of_onnxruntime_are_a_problem_with_its_cure(pretend):
    """Installed together they overwrite each other's files, and CUDA is lost without an error."""
    pretend(onnxruntime="1.32.0", onnxruntime_gpu="1.31.1")
    found = by_check(doctor.examine_environment())["onnxruntime"]
    assert found.status == "problem"
    assert "onnxruntime and onnxruntime-gpu" in found.detail
    assert found.cure.startswith("pip uninstall -y onnxruntime onnxruntime-gpu")


def test_no_onnxruntime_is_a_problem_with_its_cure(pretend):
    pretend()
    found = by_check(doctor.examine_environment())["onnxruntime"]
    assert found.status == "problem"
    assert "lineahead[cpu]" in found.cure


def test_a_driver_that_fails_is_a_problem_not_a_cpu(monkeypatch):
    broken = SimpleNamespace(cuInit=lambda flags: 999)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: broken)
    with pytest.raises(OSError, match="999"):
        doctor.cuda_devices()
    assert by_check(doctor.examine_environment())["CUDA driver"].status == "problem"


def test_no_driver_is_a_note(monkeypatch):
    def absent(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert doctor.cuda_devices() == -1
    assert by_check(doctor.examine_environment())["CUDA driver"].status == "note"
