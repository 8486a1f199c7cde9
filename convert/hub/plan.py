"""What a push would do: the folder's files compared with what the repository holds."""

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from lineahead.convert.hub.contents import KEPT, Contents, belongs, digest

Status = Literal["new", "changed", "same", "delete", "kept"]
BLOCK = 1 << 20
# What the Hub stores as large files: by its default .gitattributes, by size, and everything that is not text.
LARGE_BYTES = 10 * 1024 * 1024
LARGE_NAMES = (".safetensors", ".onnx", ".model", ".bin", ".gz", ".engine")


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A revision of a repository.

    Attributes:
        exists: whether the repository does.
        head: commit of the revision; None when there is none yet.
        files: by path.
        private: whether it is; None when unknown.
    """

    exists: bool
    head: str | None
    files: dict[str, RepoFile]
    private: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Step:
    """One file.

    Attributes:
        path: in folder and repository.
        size: in bytes.
        storage: ``lfs`` or ``git``: for new files what the Hub's default rules say.
        status: ``kept`` files are the repository's own, such as a picture in the card.
    """

    path: str
    size: int
    storage: str
    status: Status

    def row(self) -> dict[str, Any]:
        """For tables."""
        return {"file": self.path, "bytes": self.size, "storage": self.storage, "status": self.status}


def look(api: HfApi, repo: str, revision: str) -> Remote:
    """What the repository holds; a missing repository or branch holds nothing."""
    try:
        info = api.model_info(repo, revision=revision)
        assert info.sha is not None
        listed = api.list_repo_tree(repo, recursive=True, revision=info.sha)
        files = {one.path: one for one in listed if isinstance(one, RepoFile)}
        return Remote(exists=True, head=info.sha, files=files, private=info.private)
    except RevisionNotFoundError:
        return Remote(exists=True, head=None, files={})
    except RepositoryNotFoundError:
        return Remote(exists=False, head=None, files={})


def plan(found: Contents, remote: Remote, *, also: tuple[str, ...] = ()) -> list[Step]:
    """One step for every file here or there.

    Parts of an artifact that only the repository has belong to an earlier push and are deleted; other
    files there are kept.
    """
    steps = []
    for name in found.files:
        path = found.folder / name
        there = remote.files.get(name)
        size = path.stat().st_size
        storage = ("lfs" if there.lfs else "git") if there else _storage(found, name, size)
        status: Status = "new" if there is None else "same" if same(found, name, there) else "changed"
        steps.append(Step(path=name, size=size, storage=storage, status=status))
    for name, file in sorted(remote.files.items()):
        if name not in found.files:
            goes = belongs(name, also) and name not in KEPT
            storage = "lfs" if file.lfs else "git"
            steps.append(
                Step(path=name, size=file.size, storage=storage, status="delete" if goes else "kept")
            )
    return steps


def same(found: Contents, name: str, there: RepoFile) -> bool:
    """Whether a file of the folder is the one in the repository, by its hash."""
    path = found.folder / name
    if there.lfs is not None:
        return path.stat().st_size == there.lfs.size and digest(path) == there.lfs.sha256
    size = path.stat().st_size
    if size != there.size:
        return False
    blob = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            blob.update(block)
    return blob.hexdigest() == there.blob_id


def _storage(found: Contents, name: str, size: int) -> str:
    if size == 0:
        return "git"
    if name.endswith(LARGE_NAMES) or size > LARGE_BYTES:
        return "lfs"
    with (found.folder / name).open("rb") as file:
        return "lfs" if b"\0" in file.read(512) else "git"
