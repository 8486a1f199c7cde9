"""Whether the parts of an artifact folder belong together: manifest, weights, tokenizer, graphs.

Reads files only: neither torch nor transformers is imported.
"""

import struct
from pathlib import Path

from lineahead.errors import ArtifactError
from lineahead.recipes.files import sha256
from lineahead.recipes.json_file import parse_object, read_object
from lineahead.recipes.kind import require_decoder
from lineahead.recipes.manifest import Export, Manifest, read_manifest
from lineahead.runtime.certificate.document import FILE as CERTIFICATE
from lineahead.runtime.certificate.document import stale_files
from lineahead.runtime.doctor import Finding
from lineahead.runtime.tokenizer import Tokenizer

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"


def examine_artifact(folder: Path) -> list[Finding]:
    """Check an artifact folder's files against its manifest.

    Raises:
        ArtifactError: when there is no such folder.
    """
    if not folder.is_dir():
        raise ArtifactError(
            f"{folder}: no such folder", hint="Give the folder that `lineahead convert` wrote."
        )
    try:
        manifest = read_manifest(folder)
    except ArtifactError as error:
        return [Finding(check="manifest", status="problem", detail=str(error), cure=error.hint)]
    exports = [_export(folder, manifest, one) for one in manifest.exports]
    drafts = [_draft(folder, one.folder) for one in manifest.drafts]
    return [
        Finding(
            check="manifest", status="ok", detail=f"{manifest.base.reference} ({manifest.base.model_type})"
        ),
        _config(folder, manifest),
        _weights(folder),
        _tokenizer(folder, manifest),
        *drafts,
        *(exports or _no_exports(folder)),
        *_certificate(folder),
        *_tool_versions(manifest),
    ]


def _config(folder: Path, manifest: Manifest) -> Finding:
    path = folder / "config.json"
    again = f"lineahead convert {manifest.base.reference} {folder}"
    try:
        config = read_object(path, error=ArtifactError, hint=again)
    except ArtifactError as error:
        return Finding(check="config.json", status="problem", detail=str(error), cure=again)
    own = config.get("lineahead")
    listed = own.get("layers") if isinstance(own, dict) else None
    layers = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    model = manifest.model
    indices = {str(one.get("index")) for one in layers}
    if indices != set(map(str, model.linear_layers)) or any(
        one.get("settings") != model.role_settings.get(str(one.get("role")), model.settings) for one in layers
    ):
        return Finding(
            check="config.json",
            status="problem",
            detail="the attention settings differ from the manifest's",
            cure=again,
        )
    count = len(manifest.model.linear_layers)
    return Finding(
        check="config.json", status="ok", detail=f"{count} of {manifest.model.layers} layers linear"
    )


def _weights(folder: Path) -> Finding:
    """Every weight file is there and as long as its header says."""
    names = [WEIGHTS]
    index = folder / WEIGHTS_INDEX
    cure = "Copy the file again from where it was made, or convert the checkpoint again."
    if index.is_file():
        try:
            named = read_object(index, error=ArtifactError, hint=cure).get("weight_map")
        except ArtifactError as error:
            return Finding(check="weights", status="problem", detail=str(error), cure=cure)
        names = sorted(map(str, named.values())) if isinstance(named, dict) else []
        names = list(dict.fromkeys(names))
    for name in names or [WEIGHTS]:
        fault = "names a file elsewhere" if Path(name).name != name else _safetensors_fault(folder / name)
        if fault:
            return Finding(check="weights", status="problem", detail=f"{name}: {fault}", cure=cure)
    return Finding(check="weights", status="ok", detail=", ".join(names))


def _safetensors_fault(path: Path) -> str | None:
    """What is wrong with a safetensors file's size, or None."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
            if length > size - 8:
                return "damaged header"
            header = parse_object(file.read(length))
        ends = [int(one["data_offsets"][1]) for key, one in header.items() if key != "__metadata__"]
    except OSError as error:
        return "missing" if isinstance(error, FileNotFoundError) else f"unreadable: {error.strerror}"
    except (ValueError, TypeError, KeyError, IndexError):
        return "damaged header"
    expected = 8 + length + max(ends, default=0)
    return None if size == expected else f"{size} bytes, expected {expected}"


def _tokenizer(folder: Path, manifest: Manifest) -> Finding:
    missing = [name for name in TOKENIZER_FILES if not (folder / name).is_file()]
    if missing:
        cure = f"Copy {' and '.join(missing)} from {manifest.base.reference}."
        return Finding(check="tokenizer", status="problem", detail=f"no {missing[0]}", cure=cure)
    try:
        size = Tokenizer(folder).size
    except ArtifactError as error:
        cure = f"Copy {TOKENIZER_FILES[0]} again from {manifest.base.reference}."
        return Finding(check="tokenizer", status="problem", detail=f"unreadable: {error}", cure=cure)
    if size > manifest.model.vocab_size:
        detail = f"{size} tokens, but the model has {manifest.model.vocab_size} rows"
        cure = f"Copy the tokenizer files again from {manifest.base.reference}."
        return Finding(check="tokenizer", status="problem", detail=detail, cure=cure)
    return Finding(check="tokenizer", status="ok", detail=f"{size} tokens")


def _draft(folder: Path, name: str) -> Finding:
    fault = _safetensors_fault(folder / name / WEIGHTS)
    if fault:
        cure = f"lineahead draft {folder}"
        return Finding(check=f"draft {name}", status="problem", detail=f"{WEIGHTS}: {fault}", cure=cure)
    return Finding(check=f"draft {name}", status="ok", detail="complete")


def _no_exports(folder: Path) -> list[Finding]:
    try:
        require_decoder(folder, "export")
    except ArtifactError:
        return []  # nothing could be exported; a damaged config is another finding
    cure = f"lineahead export onnx {folder}"
    return [Finding(check="exports", status="note", detail="nothing is exported yet", cure=cure)]


def _export(folder: Path, manifest: Manifest, export: Export) -> Finding:
    """A graph file is the one that the manifest names, and this ONNX Runtime reads its operator set."""
    path, cure = folder / export.file, f"lineahead export onnx {folder}"
    parts = ((path, export.sha256), (path.with_name(f"{path.name}.data"), export.data_sha256))
    for part, digest in parts:
        if not part.is_file() and (digest or part is path):
            return Finding(check=export.file, status="problem", detail=f"{part.name}: missing", cure=cure)
        if digest and sha256(part) != digest:
            detail = f"{part.name}: changed since it was exported"
            return Finding(check=export.file, status="problem", detail=detail, cure=cure)
    newest = _newest_opset()
    if newest is not None and export.opset > newest:
        detail = f"opset {export.opset}, but this ONNX Runtime reads up to {newest}"
        return Finding(check=export.file, status="problem", detail=detail, cure=f"{cure} --opset {newest}")
    return Finding(check=export.file, status="ok", detail=f"{export.precision}, opset {export.opset}")


def _certificate(folder: Path) -> list[Finding]:
    """A certificate, if there is one, speaks of the files that are here."""
    if not (folder / CERTIFICATE).is_file():
        return []
    cure = f"lineahead verify {folder} --certificate"
    try:
        stale = stale_files(folder)
    except ArtifactError as error:
        return [Finding(check=CERTIFICATE, status="problem", detail=str(error), cure=cure)]
    if stale:
        detail = f"{', '.join(stale[:3])} changed since it was made"
        return [Finding(check=CERTIFICATE, status="problem", detail=detail, cure=cure)]
    return [Finding(check=CERTIFICATE, status="ok", detail="speaks of these files")]


def _newest_opset() -> int | None:
    """Newest version of any standard operator that the installed ONNX Runtime knows; None without it."""
    try:
        from onnxruntime.capi import onnxruntime_pybind11_state as state
    except ImportError:
        return None
    return max(int(one.since_version) for one in state.get_all_operator_schema() if one.domain == "")


def _tool_versions(manifest: Manifest) -> list[Finding]:
    from lineahead.runtime.doctor import installed

    made = manifest.tools.get("transformers")
    here = installed("transformers")
    if made is None or here is None or made.split(".")[0] == here.split(".")[0]:
        return []
    detail = f"made with transformers {made}, here is {here}"
    cure = f'pip install "transformers>={made.split(".")[0]},<{int(made.split(".")[0]) + 1}"'
    return [Finding(check="transformers", status="problem", detail=detail, cure=cure)]
