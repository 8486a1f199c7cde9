"""Building the native CPU kernel: once, in a cache, with one clear line when it cannot be."""

import logging
import shutil
import subprocess
import threading

import pytest

from lineahead.errors import BackendError
from lineahead.plugins.augmented_attention import native

needs_compiler = pytest.mark.skipif(native.find_compiler() is None, reason="no C++ compiler")


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(native.VARIABLE, raising=False)
    return tmp_path


@needs_compiler
def test_builds_once_for_many_threads(empty_cache, monkeypatch):
    calls, run = [], subprocess.run

    def counted(*args, **kwargs):
        calls.append(args)
        return run(*args, **kwargs)

    monkeypatch.setattr(subprocess, "run", counted)
    assert native.library(build=False) is None
    assert "compiled on first use" in str(native.status())
    threads = [threading.Thread(target=native.library) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    path = native.library()
    assert len(calls) == 1
    assert path == native.status().path
    assert str(path) in str(native.status())
    assert sorted(x.name for x in path.parent.iterdir()) == sorted([native.LIBRARY, "lock"])


def test_without_a_compiler(empty_cache, monkeypatch, caplog):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert native.library() is None
    assert "no C++ compiler" in native.status().reason
    with caplog.at_level(logging.INFO, logger=native.__name__):
        assert native.resolve("auto") is None
    assert "function body (no C++ compiler" in caplog.text
    with pytest.raises(BackendError, match="no C\\+\\+ compiler"):
        native.resolve("native")


def test_a_failing_compiler_is_one_line(empty_cache, tmp_path, monkeypatch):
    fake = tmp_path / "fake++"
    fake.write_text("#!/bin/sh\necho 'x.h:1: error: no such feature' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    with pytest.raises(BackendError, match="no such feature") as caught:
        native.resolve("auto")
    assert native.VARIABLE in caught.value.hint
    assert "\n" not in str(caught.value)


@needs_compiler
def test_unwritable_cache(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(BackendError, match="cannot write") as caught:
        native.library()
    assert "XDG_CACHE_HOME" in caught.value.hint


def test_choice_by_variable(empty_cache, monkeypatch):
    monkeypatch.setenv(native.VARIABLE, "function")
    assert native.resolve() is None
    monkeypatch.setenv(native.VARIABLE, "fast")
    with pytest.raises(BackendError, match="unknown operator implementation 'fast'"):
        native.resolve()
