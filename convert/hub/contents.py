"""Which files of a folder are an artifact's, and whether they are the ones that were made."""

import functools
import json
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from lineahead.convert.intact import tensor_names
from lineahead.errors import ArtifactError, LineaheadError
from lineahead.recipes.files import sha256
from lineahead.recipes.manifest import Manifest

CARD, CERTIFICATE = "README.md", "certificate.json"
# One star does not cross a slash: see `belongs`.
PARTS = (
    "config.json",
    "generation_config.json",
    "lineahead.json",
    "*.safetensors",
    "model.safetensors.index.json",
    "modeling_lineahead.py",
    "custom_generate/generate.py",
    "tokenizer*.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece*.model",
    "*.tiktoken",
    "tekken.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "processor_config.json",
    "preprocessor_config.json",
    CARD,
    CERTIFICATE,
    "training_metrics.jsonl",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
    "draft*/config.json",
    "draft*/*.safetensors",
    "onnx/*.onnx",
    "onnx/*.onnx.data",
    "tensorrt/*/*.engine",
    "tensorrt/*/*.json",
    "tensorrt/*/*.onnx",
    "tensorrt/*/*.onnx.data",
    "tensorrt/*/*.safetensors",
    "tensorrt/*/*.tokens.npy",
)
KEPT = (".gitattributes",)
MAX_JSON = 100_000_000


@dataclass(frozen=True, kw_only=True)
class Contents:
    """An artifact folder's files.

    Attributes:
        folder: where.
        files: paths in it, with slashes, sorted.
    """

    folder: Path
    files: tuple[str, ...]


def belongs(path: str, also: tuple[str, ...] = ()) -> bool:
    """Whether a path, with slashes, is that of an artifact's part, or matches a pattern in `also`."""
    parts = PurePosixPath(path).parts
    for pattern in (*PARTS, *also):
        wanted = PurePosixPath(pattern).parts
        if len(wanted) == len(parts) and all(map(fnmatch, parts, wanted)):
            return True
    return False


def contents(folder: Path, *, also: tuple[str, ...] = ()) -> Contents:
    """Everything in the folder, which must be an artifact's parts and nothing else.

    Args:
        folder: an artifact folder.
        also: patterns of further files that belong to it.

    Raises:
        ArtifactError: naming a file that is no part of an artifact, or lies outside the folder.
    """
    root = folder.resolve()
    found: list[str] = []
    strays: list[str] = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise ArtifactError(f"{path}: a link to outside the folder", hint="Copy the file there.")
        if path.is_dir() or name.split("/")[0] in KEPT:
            continue
        (found if path.is_file() and belongs(name, also) else strays).append(name)
    if strays:
        more = f" (and {len(strays) - 1} more)" if len(strays) > 1 else ""
        raise ArtifactError(
            f"{folder / strays[0]}: not a part of an artifact{more}",
            hint=f"Delete it, or publish it with --include '{strays[0]}'.",
        )
    return Contents(folder=folder, files=tuple(found))


def digest(path: Path) -> str:
    """SHA-256 of a file, read once as long as it does not change."""
    status = path.stat()
    return _digest(path, status.st_size, status.st_mtime_ns, status.st_ino)


@functools.lru_cache(maxsize=1024)
def _digest(path: Path, size: int, modified: int, inode: int) -> str:
    return sha256(path)


def check_intact(found: Contents, manifest: Manifest) -> None:
    """Compare the files with what the manifest says was made.

    Raises:
        ArtifactError: naming a file that is missing, changed since, or damaged.
    """
    there = set(found.files)
    again = f"Convert again, or take the file from where it was made: {manifest.base.reference}."
    wanted = dict(manifest.files)
    for export in manifest.exports:
        wanted[export.file] = export.sha256
        if export.data_sha256:
            wanted[f"{export.file}.data"] = export.data_sha256
    for name in ("config.json", *wanted):
        if name not in there:
            cure = f"Run `lineahead export onnx {found.folder}`." if name.startswith("onnx/") else again
            raise ArtifactError(f"{found.folder / name}: missing", hint=cure)
    for name, made in wanted.items():
        if made and digest(found.folder / name) != made:
            raise ArtifactError(f"{found.folder / name}: changed since it was made", hint=again)
    for name in found.files:
        if name.endswith(".safetensors"):
            tensor_names(found.folder / name)
    for draft in manifest.drafts:
        if f"{draft.folder}/config.json" not in there:
            raise ArtifactError(
                f"{found.folder / draft.folder}: no draft heads",
                hint=f"Train them again: lineahead draft {found.folder}.",
            )
    graphs = {name for name in there if name.startswith("onnx/") and name.endswith(".onnx")}
    unknown = sorted(graphs - set(wanted))
    if unknown:
        raise ArtifactError(
            f"{found.folder / unknown[0]}: a graph that the manifest does not name",
            hint=f"Delete it, or run `lineahead export onnx {found.folder}`.",
        )


def read_certificate(found: Contents) -> dict[str, object] | None:
    """What ``certificate.json`` says, or None where there is none.

    Raises:
        ArtifactError: when it is damaged, or was made of other files.
    """
    path = found.folder / CERTIFICATE
    if CERTIFICATE not in found.files:
        return None
    again = f"Make it again: lineahead verify {found.folder} --certificate."
    try:
        if path.stat().st_size > MAX_JSON:
            raise ValueError("too long")
        data = json.loads(path.read_text(encoding="utf-8"))
        keys = ("identical", "defects", "near_ties", "prompts", "drafters", "created")
        missing = [key for key in keys if key not in data]
        if missing:
            raise ValueError(f"no {missing[0]!r}")
        hashes = data.get("hashes") or {}
        for name, made in hashes.items():
            if name in found.files and digest(found.folder / name) != made:
                raise ArtifactError(f"{path}: made of another {name}", hint=again)
    except LineaheadError:
        raise
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path}: damaged: {error}", hint=again) from error
    return dict(data)
