"""Files and folders appear whole or not at all."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from lineahead.errors import StorageError
from lineahead.recipes.files import holding, replacing, sha256, write_text


class StopError(Exception):
    pass


def fail(target, error):
    with replacing(target) as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise error


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "f"
    write_text(target, "old")
    with pytest.raises(StopError):
        fail(target, StopError())
    assert target.read_text(encoding="utf-8") == "old"
    assert os.listdir(tmp_path) == ["f"]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "d"
    for name in ("one", "two"):
        with replacing(target) as temporary:
            temporary.mkdir()
            (temporary / name).touch()
    assert os.listdir(target) == ["two"]
    assert os.listdir(tmp_path) == ["d"]


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(StorageError, match="no space") as caught:
        fail(tmp_path / "f", OSError(errno.ENOSPC, "No space left on device"))
    assert str(tmp_path / "f") in str(caught.value)
    assert caught.value.hint
    assert os.listdir(tmp_path) == []


def test_sha256(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256(tmp_path / "f").startswith("ba7816bf")


def test_holders_of_one_file_take_turns(tmp_path):
    """Threads that count in a file, each reading before it writes, lose no count."""
    target = tmp_path / "count"
    write_text(target, "0")

    def add(_):
        with holding(target):
            write_text(target, str(int(target.read_text(encoding="utf-8")) + 1))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(40)))
    assert target.read_text(encoding="utf-8") == "40"


def test_a_folder_that_cannot_be_held_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(StorageError, match="cannot write"), holding(tmp_path / "file" / "page.md"):
        pass
