"""Export of an artifact: the step graph in each precision and the draft graph, if they agree with eager."""

import gc
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import torch

from lineahead.convert.checkpoint import load_model
from lineahead.convert.drafts.stored import draft_kind
from lineahead.convert.onnx.draft import export_draft
from lineahead.convert.onnx.graph import OPSET, save, trace
from lineahead.convert.onnx.parity import Parity, compare_in_subprocess
from lineahead.convert.onnx.quantize import BITS, quantize_file
from lineahead.convert.onnx.recurrent_draft import export_recurrent
from lineahead.errors import ExportError, LineaheadError, ParityError
from lineahead.plugins.augmented_attention.huggingface.modeling import layers_of
from lineahead.plugins.augmented_attention.huggingface.step_model import StepModel
from lineahead.recipes.files import scratch_folder, sha256
from lineahead.recipes.kind import require_decoder
from lineahead.recipes.manifest import FILE, Export, read_manifest, write_manifest

logger = logging.getLogger(__name__)

PRECISIONS = ("fp32", "int8", "int4")
FOLDER = "onnx"
STAGING = ".export-"
PARITY_BOUND = {"fp32": 1e-4, "int8": 1e-3, "int4": 1e-3}  # measured on SmolLM2-135M: 6e-6, 9e-5, 1e-5
ROUNDING_BOUND = {"fp32": 0.0, "int8": 0.02, "int4": 0.2}  # measured on SmolLM2-135M: 0.005, 0.08
Report = Callable[[str], None]


def export_onnx(
    artifact: Path,
    *,
    precisions: Sequence[str] = PRECISIONS,
    opset: int = OPSET,
    draft: bool | None = None,
    progress: Report | None = None,
) -> tuple[Export, ...]:
    """Write ``onnx/verifier*.onnx`` and ``onnx/draft.onnx``, and list them in the manifest.

    Every graph is compared with eager in a fresh process first; graphs in the folder stay as they were when
    one disagrees.

    Args:
        artifact: the artifact folder.
        precisions: of the verifier: ``fp32``, ``int8``, ``int4``.
        opset: version of the default domain.
        draft: whether to export the draft heads; when None, if there are any.
        progress: told what begins.

    Returns:
        What was written.

    Raises:
        ArtifactError: when the artifact is an encoder or encoder-decoder.
        ExportError: on an unknown precision, or when the exporter fails.
        ParityError: when a graph and eager disagree.
        StorageError: when the disk is full.
    """
    unknown = sorted(set(precisions) - set(PRECISIONS))
    if unknown:
        raise ExportError(f"unknown precision {unknown[0]!r}", hint=f"Choose from: {', '.join(PRECISIONS)}.")
    require_decoder(artifact, "export")
    report = progress or logger.info
    with scratch_folder(artifact / FOLDER, STAGING) as staging:
        written = [] if not precisions else _verifiers(artifact, staging, precisions, opset, report)
        if draft or (draft is None and (artifact / "draft").is_dir()):
            report("draft graph")
            export_it = export_recurrent if draft_kind(artifact) == "recurrent" else export_draft
            written.append(export_it(artifact, staging / "draft.onnx", opset=opset))
        records = tuple(_publish(staging, artifact / FOLDER, record) for record in written)
    _record(artifact, records)
    return records


def graph_name(precision: str) -> str:
    """File name of the verifier of a precision."""
    return "verifier.onnx" if precision == "fp32" else f"verifier_{precision}.onnx"


def _verifiers(
    artifact: Path, staging: Path, precisions: Sequence[str], opset: int, report: Report
) -> list[Export]:
    report("trace the step graph")
    full = staging / graph_name("fp32")
    _trace(artifact, full, opset)
    written = []
    for precision in (name for name in PRECISIONS if name in precisions):
        path = staging / graph_name(precision)
        if precision != "fp32":
            report(f"quantise to {precision}")
            quantize_file(full, path, bits=BITS[precision])
        onnx.checker.check_model(str(path))
        report(f"compare {precision} with eager in a fresh process")
        parity = compare_in_subprocess(artifact, path, precision=precision)
        check(parity, precision, path.name)
        written.append(
            Export(
                file=f"{FOLDER}/{path.name}",
                kind="verifier",
                precision=precision,
                opset=opset,
                parity=parity.figures(),
            )
        )
    return written


def check(parity: Parity, precision: str, name: str) -> None:
    """Refuse a graph that is not the model.

    Raises:
        ParityError: naming the figure at fault.
    """
    bound = PARITY_BOUND[precision]
    if not parity.largest <= bound:
        raise ParityError(
            f"{name}: differs from eager by {parity.largest:.1e} in {parity.worst_case!r}, "
            f"more than {bound:.0e}",
            hint="Nothing was saved. Report it with the model's config.json.",
        )
    if not parity.rounding <= ROUNDING_BOUND[precision]:
        raise ParityError(
            f"{name}: quantisation changes a weight matrix by {parity.rounding:.0%}",
            hint="Export this model as fp32 or int8.",
        )


def _trace(artifact: Path, path: Path, opset: int) -> None:
    model = load_model(artifact, dtype=torch.float32)
    try:
        save(trace(StepModel(model, layers_of(model.config)), opset=opset), path)
    except torch.onnx.OnnxExporterError as error:
        cause: BaseException = error
        while cause.__cause__ is not None and not isinstance(cause, LineaheadError):
            cause = cause.__cause__
        if isinstance(cause, LineaheadError):
            raise cause from error
        raise ExportError(
            f"torch.onnx.export failed on {type(model).__name__}: {str(cause).strip().splitlines()[0]}",
            hint="This architecture cannot be traced; the eager backend runs it.",
        ) from error
    finally:
        del model
        gc.collect()


def _publish(staging: Path, folder: Path, record: Export) -> Export:
    """Move a graph and its data file into place; the old graph goes first, lest it meet the new data."""
    graph = staging / Path(record.file).name
    data = graph.with_name(f"{graph.name}.data")
    size, digest, data_digest = graph.stat().st_size, sha256(graph), ""
    (folder / graph.name).unlink(missing_ok=True)
    if data.exists():
        size, data_digest = size + data.stat().st_size, sha256(data)
        os.replace(data, folder / data.name)
    else:
        (folder / data.name).unlink(missing_ok=True)
    os.replace(graph, folder / graph.name)
    return record.model_copy(update={"bytes": size, "sha256": digest, "data_sha256": data_digest})


def _record(artifact: Path, records: tuple[Export, ...]) -> None:
    if not (artifact / FILE).is_file():
        return
    manifest = read_manifest(artifact)
    names = {record.file for record in records}
    kept = tuple(one for one in manifest.exports if one.file not in names)
    write_manifest(artifact, manifest.model_copy(update={"exports": (*kept, *records)}))
