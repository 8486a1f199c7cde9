"""Whether a Hub repository holds what its manifest says, without downloading weights."""

import tempfile
from pathlib import Path
from typing import Any

from lineahead.errors import ArtifactError, InputError
from lineahead.recipes.manifest import FILE, Manifest, read_manifest
from lineahead.runtime.doctor import Finding

NEEDED = ("config.json", "tokenizer.json", "modeling_lineahead.py")


def examine_repository(repo: str, *, revision: str | None = None) -> list[Finding]:
    """Compare the files of a repository with the manifest in it.

    Args:
        repo: ``owner/name``.
        revision: branch, tag or commit; the main branch by default.

    Raises:
        InputError: when the repository cannot be read.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled

    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
        with tempfile.TemporaryDirectory() as folder:
            hf_hub_download(repo, FILE, revision=info.sha, local_dir=folder)
            manifest = read_manifest(Path(folder))
    except EntryNotFoundError:
        cure = f"lineahead push DIR {repo}"
        return [Finding(check="manifest", status="problem", detail=f"no {FILE}", cure=cure)]
    except ArtifactError as error:
        cure = f"lineahead push DIR {repo}"
        return [Finding(check="manifest", status="problem", detail=str(error), cure=cure)]
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(
            f"{repo}: cannot be read: {first}",
            hint="Check the name, HF_ENDPOINT and HF_HUB_OFFLINE; `hf auth login` for private ones.",
        ) from error
    files = {one.rfilename: one for one in info.siblings or ()}
    detail = f"{manifest.base.reference} ({manifest.base.model_type}) at {info.sha}"
    return [
        Finding(check="manifest", status="ok", detail=detail),
        _needed(repo, files),
        *_exports(repo, manifest, files),
    ]


def _needed(repo: str, files: dict[str, Any]) -> Finding:
    missing = [name for name in NEEDED if name not in files]
    if not any(name.endswith(".safetensors") and "/" not in name for name in files):
        missing.append("model.safetensors")
    if missing:
        cure = f"lineahead push DIR {repo}"
        return Finding(check="files", status="problem", detail=f"no {', '.join(missing)}", cure=cure)
    return Finding(check="files", status="ok", detail=f"{len(files)} files")


def _exports(repo: str, manifest: Manifest, files: dict[str, Any]) -> list[Finding]:
    """Every graph of the manifest is there, with the contents that the manifest names where the Hub tells."""
    found = []
    for export in manifest.exports:
        parts = {export.file: export.sha256}
        if export.data_sha256:
            parts[f"{export.file}.data"] = export.data_sha256
        fault = next((text for name, digest in parts.items() if (text := _fault(files, name, digest))), None)
        if fault:
            cure = f"lineahead push DIR {repo}"
            found.append(Finding(check=export.file, status="problem", detail=fault, cure=cure))
        else:
            found.append(Finding(check=export.file, status="ok", detail=export.precision))
    return found


def _fault(files: dict[str, Any], name: str, digest: str) -> str | None:
    if name not in files:
        return f"{name} is missing"
    stored = files[name].lfs
    if stored is not None and digest and stored.sha256 != digest:
        return f"{name} is not the file that the manifest names"
    return None
