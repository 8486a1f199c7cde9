"""Writing files so that a half-written one is never seen: a temporary name, then a rename."""

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from lineahead.errors import LineaheadError, StorageError


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; rename it over `target` at the end, remove it on any error.

    The block may write a file or make a directory there. An existing directory at `target` is replaced as
    a whole.

    Raises:
        StorageError: when the disk is full or the folder cannot be written.
    """
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _rename(temporary, target)
    except OSError as error:
        if isinstance(error, StorageError) or error.errno is None:
            raise
        raise storage_error(target, error) from error
    finally:
        _remove(temporary)


@contextlib.contextmanager
def scratch_folder(folder: Path, prefix: str) -> Iterator[Path]:
    """A temporary folder inside `folder`, on the same file system, removed at the end.

    What a killed run left there under `prefix` is removed too: one run at a time works in a folder.

    Raises:
        StorageError: when the disk is full or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(f"{prefix}*"):
            shutil.rmtree(stale, ignore_errors=True)
        made = Path(tempfile.mkdtemp(prefix=prefix, dir=folder))
        try:
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        if isinstance(error, LineaheadError) or error.errno is None:
            raise
        raise storage_error(folder, error) from error


@contextlib.contextmanager
def holding(target: Path) -> Iterator[None]:
    """Keep other processes that hold `target` waiting, so that what is read is what is replaced.

    Raises:
        StorageError: when the folder cannot be written.
    """
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise storage_error(target, error) from error
    try:
        yield
    finally:
        lock.release()


def _rename(temporary: Path, target: Path) -> None:
    if not (target.is_dir() and temporary.is_dir()):
        os.replace(temporary, target)
        return
    old = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.old")
    os.replace(target, old)
    os.replace(temporary, target)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def storage_error(path: Path, error: OSError) -> StorageError:
    """The :class:`StorageError` that says which file could not be written and what to do about it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(
            f"{path}: no space left on the disk", hint="Free some space and run the command again."
        )
    return StorageError(
        f"{path}: cannot write: {error.strerror or error}",
        hint="Check that the folder exists and is writable.",
    )


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in one step.

    Raises:
        StorageError: when it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
