"""Pull: a revision of a Hub repository becomes an artifact folder: checked, complete, or not there at all."""

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download

from lineahead.convert.checkpoint import is_artifact
from lineahead.convert.hub.contents import belongs, check_intact, contents, read_certificate
from lineahead.convert.hub.failures import hub_errors, patiently
from lineahead.convert.hub.plan import look
from lineahead.errors import ArtifactError, HubError, InputError
from lineahead.plugins.augmented_attention.huggingface.bundle import bundle
from lineahead.plugins.augmented_attention.huggingface.modeling import CODE_FILE
from lineahead.recipes.files import replacing, storage_error
from lineahead.recipes.manifest import FILE, read_manifest

CACHE = ".cache"


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """What arrived.

    Attributes:
        repo: from where.
        commit: of it.
        folder: the artifact folder.
        files: how many.
        size: of all, in bytes.
        left: files of the repository that are no part of an artifact, and were not downloaded.
        own_code: whether ``modeling_lineahead.py`` is what this version writes, not other code.
    """

    repo: str
    commit: str
    folder: str
    files: int
    size: int
    left: tuple[str, ...]
    own_code: bool


def pull(
    repo: str,
    folder: Path,
    *,
    revision: str = "main",
    overwrite: bool = False,
    announce: Callable[[str], None],
) -> Pulled:
    """Download an artifact, compare it with its manifest, and put it in place.

    A download that was cut off goes on where it was. Files that are no part of an artifact are left where
    they are, pickles among them. Nothing that arrives is run.

    Args:
        repo: ``owner/name``.
        folder: the artifact folder.
        revision: branch, tag, commit or ``refs/pr/N``.
        overwrite: replace an artifact folder that is there.
        announce: told what is going on.

    Raises:
        InputError: when `folder` is there and may not be replaced.
        HubError: when the Hub refuses or cannot be reached, or the repository holds no artifact.
        ArtifactError: when a file is not what the manifest says.
    """
    if folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
        if not is_artifact(folder):
            raise InputError(f"{folder} exists and is not an artifact folder", hint="Choose another folder.")
        if not overwrite:
            raise InputError(
                f"{folder} exists", hint="Choose another folder, or replace it with --overwrite."
            )
    if constants.is_offline_mode():
        return _from_cache(repo, folder, revision)
    with hub_errors(repo):
        remote = patiently(lambda: look(HfApi(), repo, revision), "listing")
        if remote.head is None:
            # Asked again for the Hub's own words: gated, private, missing, or a revision that is not there.
            HfApi().model_info(repo, revision=revision)
            raise HubError(f"{repo}: empty", hint="Check its name and revision.")
        wanted = sorted(name for name in remote.files if belongs(name))
        if FILE not in wanted:
            raise HubError(
                f"{repo}: no {FILE}: not an artifact", hint="Convert the model: lineahead convert."
            )
        commit = remote.head
        partial = folder.with_name(f".{folder.name}.{commit[:12]}.pulling")
        size = sum(remote.files[name].size for name in wanted)
        announce(f"{repo}: {len(wanted)} files, {size / 1e6:.1f} MB, commit {commit[:8]}")
        patiently(
            lambda: snapshot_download(
                repo,
                revision=commit,
                local_dir=partial,
                allow_patterns=[re.sub(r"([*?\[])", r"[\1]", n) for n in wanted],
            ),
            "download",
        )
    left = tuple(sorted(set(remote.files) - set(wanted) - {".gitattributes"}))
    return _put_in_place(repo, commit, partial, folder, left)


def _from_cache(repo: str, folder: Path, revision: str) -> Pulled:
    """Without network: what the Hub cache holds, copied."""
    with hub_errors(repo):
        cached = Path(snapshot_download(repo, revision=revision, local_files_only=True))
    commit = cached.name
    partial = folder.with_name(f".{folder.name}.{commit[:12]}.pulling")
    names = [path.relative_to(cached).as_posix() for path in sorted(cached.rglob("*")) if path.is_file()]
    for name in filter(belongs, names):
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(cached / name, partial / name)
    left = tuple(name for name in names if not belongs(name))
    return _put_in_place(repo, commit, partial, folder, left)


def _put_in_place(repo: str, commit: str, partial: Path, folder: Path, left: tuple[str, ...]) -> Pulled:
    """Check the download, then rename it."""
    shutil.rmtree(partial / CACHE, ignore_errors=True)
    try:
        manifest = read_manifest(partial)
        found = contents(partial)
        check_intact(found, manifest)
        read_certificate(found)
    except ArtifactError as error:
        shutil.rmtree(partial, ignore_errors=True)
        message = str(error).replace(str(partial), f"{repo}@{commit[:8]}")
        raise ArtifactError(
            message, hint="Ask the repository's owner, or pull an earlier --revision."
        ) from None
    code = partial / CODE_FILE
    own = code.is_file() and code.read_text(encoding="utf-8", errors="replace") == bundle()
    size = sum((partial / name).stat().st_size for name in found.files)
    try:
        with replacing(folder) as temporary:
            partial.rename(temporary)
    except OSError as error:
        raise storage_error(folder, error) from error
    return Pulled(
        repo=repo,
        commit=commit,
        folder=str(folder),
        files=len(found.files),
        size=size,
        left=left,
        own_code=own,
    )
