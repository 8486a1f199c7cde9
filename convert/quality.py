"""Perplexity of an artifact beside its teacher's, recorded in the manifest."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lineahead.convert.checkpoint import load_artifact
from lineahead.convert.evaluate import evaluate
from lineahead.convert.source import load_source
from lineahead.convert.training.progress import Progress
from lineahead.errors import InputError
from lineahead.recipes.kind import require_decoder
from lineahead.recipes.manifest import Evaluation, read_manifest, write_manifest


def measure_quality(
    artifact: Path,
    files: Sequence[Path],
    *,
    context: Sequence[int] = (1024,),
    tokens: int = 16384,
    stride: int | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> list[Evaluation]:
    """Measure perplexity on text files, teacher beside student, and write it into the manifest.

    While the pretrained weights are unchanged the artifact is its own teacher; otherwise the teacher is
    loaded from where the manifest says that it came from.

    Args:
        artifact: the artifact folder.
        files: text files.
        context: window lengths.
        tokens: tokens read per file.
        stride: between windows; the context when None.
        device: ``cpu`` or ``cuda``; the CPU when None.
        progress: where to report.

    Returns:
        One record per file and context; older ones of the same file and context are replaced.

    Raises:
        InputError: when there are no files, or a file cannot be used.
        ArtifactError: when the folder is not an artifact.
    """
    if not files:
        raise InputError("no text to evaluate on", hint="Name files, or give the recipe eval.files.")
    missing = next((path for path in files if not path.is_file()), None)
    if missing is not None:
        raise InputError(f"{missing}: no such file", hint="Name text files that exist.")
    require_decoder(artifact, "perplexity")
    manifest = read_manifest(artifact)
    model, tokenizer = load_artifact(artifact, device=device)
    teacher = None
    if manifest.base_weights != "original":
        base = manifest.base
        loaded = load_source(base.reference, revision=base.revision, trust_remote_code=base.trust_remote_code)
        teacher = loaded.model.to(device) if device else loaded.model  # type: ignore[arg-type]
    found = evaluate(
        model,
        tokenizer,
        files,
        teacher=teacher,
        context=context,
        tokens=tokens,
        stride=stride,
        progress=progress,
    )
    measured = {(one.file, one.context) for one in found}
    kept = [one for one in manifest.evaluations if (one.file, one.context) not in measured]
    write_manifest(artifact, manifest.model_copy(update={"evaluations": (*kept, *found)}))
    return found


def summary(evaluation: Evaluation) -> dict[str, Any]:
    """One row of a table: where it was measured, both perplexities, their ratio."""
    teacher, student = evaluation.perplexity["teacher"], evaluation.perplexity["student"]
    return {
        "file": evaluation.file,
        "context": evaluation.context,
        "tokens": evaluation.tokens,
        "teacher": teacher,
        "student": student,
        "ratio": student / teacher,
    }
