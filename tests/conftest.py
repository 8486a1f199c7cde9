"""Fixtures shared by all tests, and the rules for skipping what a machine cannot run."""

import importlib.util
import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("LINEAHEAD_SHARED", ROOT.parent / "shared"))

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_collection_modifyitems(items):
    """Skip, with its reason, every test whose marker names something that is absent here."""
    absent = (
        {"shared": f"no weights and text in {SHARED.name}/ beside the checkout"}
        if not SHARED.is_dir()
        else {}
    )
    if importlib.util.find_spec("tensorrt") is None:
        absent["trt"] = "TensorRT is not installed"
    if not _has_cuda():
        absent["gpu"] = "no CUDA device"
    if os.environ["HF_HUB_OFFLINE"] == "1":
        absent["net"] = "HF_HUB_OFFLINE=1"
    if os.environ.get("LINEAHEAD_LONG") != "1":
        absent["long"] = "minutes of compiling; LINEAHEAD_LONG=1 runs it"
    for item in items:
        for name, reason in absent.items():
            if item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=reason))


def _has_cuda():
    from lineahead.runtime.doctor import cuda_devices

    return cuda_devices() > 0


@pytest.fixture
def rng():
    """A seeded torch generator."""
    import torch

    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def shared():
    """Folder of real weights and text; only for tests marked `shared`."""
    return SHARED


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """Makes a folder once for all processes of this session; nobody may change it.

    ``made_once(name, make)`` calls ``make(folder)``, in the first process that asks, with a
    folder that is not there yet; the others wait. It returns the folder.
    """
    own = tmp_path_factory.getbasetemp()
    base = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def made(name, make):
        folder = base / f"once-{name}"
        with FileLock(folder.with_suffix(".lock")):
            if not folder.exists():
                unfinished = folder.with_suffix(".unfinished")
                shutil.rmtree(unfinished, ignore_errors=True)  # of a process that failed
                make(unfinished)
                unfinished.rename(folder)
        return folder

    return made


@pytest.fixture
def compared_here(monkeypatch):
    """Exported graphs are compared with eager in this process; another takes 8 s to import the same."""
    from lineahead.convert.onnx import export, parity

    monkeypatch.setattr(export, "compare_in_subprocess", parity.compare)


@pytest.fixture
def run():
    """Run the command line in this process; returns click's result (exit_code, stdout, stderr)."""
    from click.testing import CliRunner

    from lineahead.cli import main

    def invoke(*arguments, **options):
        return CliRunner().invoke(main, [str(one) for one in arguments], **options)

    return invoke
