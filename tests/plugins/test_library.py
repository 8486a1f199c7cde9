"""The plugin library's build: headers found, what is missing named, the cache's key."""

import json
import shutil

import pytest
from click.testing import CliRunner

from lineahead.cli import main
from lineahead.errors import BackendError
from lineahead.plugins import library

NEW = "#define TRT_MAJOR_ENTERPRISE 11\n#define TRT_MINOR_ENTERPRISE 1\n#define TRT_PATCH_ENTERPRISE 0\n"
NEW += "#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE //!< major\n"
OLD = "#define NV_TENSORRT_MAJOR 8 //!<\n#define NV_TENSORRT_MINOR 6\n#define NV_TENSORRT_PATCH 1\n"


def headers_in(folder, version):
    (folder / "include").mkdir(parents=True)
    (folder / "include" / library.HEADER).write_text("")
    (folder / "include" / library.VERSION_HEADER).write_text(version)
    return folder


@pytest.mark.parametrize(("text", "version"), [(OLD, "8.6.1"), (NEW, "11.1.0")])
def test_headers_are_found_with_their_version(text, version, tmp_path, monkeypatch):
    root = headers_in(tmp_path / "trt", text)
    monkeypatch.setenv(library.VARIABLE, str(root))
    assert library.find_headers() == library.Headers(folder=root / "include", version=version)
    assert library.find_headers(root / "include").version == version


def test_a_missing_header_is_named(tmp_path):
    result = CliRunner().invoke(main, ["plugin", "build", "--tensorrt-root", str(tmp_path)])
    assert result.exit_code == BackendError.exit_code
    assert f"{library.HEADER} is not in {tmp_path}" in result.output
    root = headers_in(tmp_path / "trt", "#define NOTHING\n")
    with pytest.raises(BackendError, match="no NV_TENSORRT_MAJOR"):
        library.find_headers(root)
    (root / "include" / library.VERSION_HEADER).unlink()
    with pytest.raises(BackendError, match=f"{library.VERSION_HEADER} is missing"):
        library.find_headers(root)


def test_a_missing_cmake_is_named(tmp_path, monkeypatch):
    found = library.find_headers(headers_in(tmp_path / "trt", OLD))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(BackendError, match="CMake, which is not on PATH"):
        library.build(found)


def test_the_cache_tells_sources_versions_and_architectures_apart(tmp_path, monkeypatch):
    old = library.find_headers(headers_in(tmp_path / "old", OLD))
    new = library.find_headers(headers_in(tmp_path / "new", NEW))
    paths = {library.cached(old), library.cached(new), library.cached(old, ("90",))}
    copy = tmp_path / "plugins"
    shutil.copytree(library.FOLDER, copy)
    changed = copy / "augmented_attention/csrc/cuda/call.h"
    changed.write_text(changed.read_text() + "// more\n")
    monkeypatch.setattr(
        library, "SOURCES", tuple(copy / one.relative_to(library.FOLDER) for one in library.SOURCES)
    )
    monkeypatch.setattr(library, "FOLDER", copy)
    paths.add(library.cached(old))
    assert len(paths) == 4


def test_a_library_in_the_cache_is_found_by_its_version_and_sources(tmp_path, monkeypatch):
    monkeypatch.setattr(library, "cache_folder", lambda: tmp_path)
    said = {"old": ("8.6.1", "stale"), "right": ("8.6.1", library.source_hash())}
    said |= {"other": ("11.1.0", library.source_hash())}
    for folder in said:
        (tmp_path / "plugins" / folder).mkdir(parents=True)
        (tmp_path / "plugins" / folder / library.LIBRARY).write_text("")

    def describe(path):
        version, hash_ = said[path.parent.name]
        return {"build": {"tensorrt": version, "source_hash": hash_}}

    monkeypatch.setattr(library, "describe", describe)
    assert [path.parent.name for path in library.built("8.6.0")] == ["right"]
    assert library.built("10.3.0") == []


def test_what_is_no_plugin_library_is_refused(tmp_path):
    other = tmp_path / "other.so"
    with pytest.raises(BackendError, match="no such file"):
        library.describe(other)
    other.write_text(json.dumps({}))
    with pytest.raises(BackendError, match="not a lineahead plugin library"):
        library.describe(other)
