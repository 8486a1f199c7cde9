"""The first half of ``lineahead demo``: from checkpoint to exported artifact; finished steps are skipped."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from lineahead.convert.onnx.export import export_onnx
from lineahead.convert.pipeline import Options, convert_checkpoint, finetune, train_draft
from lineahead.convert.quality import measure_quality
from lineahead.convert.training.progress import stderr_progress
from lineahead.errors import ArtifactError
from lineahead.recipes.files import write_text
from lineahead.recipes.load import parse_recipe
from lineahead.recipes.manifest import Manifest, read_manifest
from lineahead.recipes.schema import Recipe

PRECISIONS = ("fp32", "int4")
TRAIN_FILE, TEST_FILE = "python-manual-train.txt", "python-manual-test.txt"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of the demo.

    Attributes:
        name: what it does.
        done: whether the artifact already has its result.
        run: does it.
    """

    name: str
    done: Callable[[], bool]
    run: Callable[[], Any]


def prepare(
    source: str,
    artifact: Path,
    recipe: Recipe,
    *,
    text: Path | None = None,
    announce: Callable[[str], None] = lambda message: None,
) -> Manifest:
    """Convert, fine-tune, measure, draft and export, skipping what an earlier call finished.

    Args:
        source: the checkpoint, as ``lineahead convert`` takes it.
        artifact: the artifact folder; replaced when it was made from another checkpoint or recipe.
        recipe: what to do; lengths beyond the model's positions are cut to them.
        text: file to measure perplexity on; a part of the Python manual when None. A recipe that names no
            data trains on another part.
        announce: called with a line per step.

    Raises:
        LineaheadError: whatever a step raises; steps before it stay finished.
    """
    if recipe.stages and recipe.data.source is None:
        own = recipe.model_dump(mode="json", exclude_unset=True)
        own["data"] = {"files": [str(_manual(artifact) / TRAIN_FILE)]}
        recipe = parse_recipe(own, recipe.name)
    _convert(source, artifact, recipe, announce)
    fitted = fit(recipe, read_manifest(artifact).model.max_position)
    for step in _steps(artifact, fitted, text, announce):
        if step.done():
            announce(f"{step.name}: done before")
            continue
        announce(step.name)
        step.run()
    return read_manifest(artifact)


def _manual(artifact: Path) -> Path:
    return artifact.with_name(artifact.name + ".text")


def fit(recipe: Recipe, limit: int | None) -> Recipe:
    """The recipe with every length cut to a model's `limit` of positions."""
    if limit is None:
        return recipe
    data = recipe.model_dump(mode="json", exclude_unset=True)
    samples = [data.get("data", {}).get("samples"), (data.get("draft") or {}).get("samples")]
    for part in [*data.get("stages", ()), *(one for one in samples if one)]:
        part["sequence_length"] = min(part.get("sequence_length", limit), limit)
    contexts = recipe.eval.context
    data["eval"] = {**data.get("eval", {}), "context": sorted({min(one, limit) for one in contexts})}
    return parse_recipe(data, recipe.name)


def _convert(source: str, artifact: Path, recipe: Recipe, announce: Callable[[str], None]) -> None:
    """Convert unless the artifact comes from the same checkpoint and recipe."""
    name = f"convert {source}"
    try:
        manifest = read_manifest(artifact)
        made_by = [one.model_dump(mode="json") for one in (recipe, fit(recipe, manifest.model.max_position))]
        if manifest.base.reference == source and manifest.recipe in made_by:
            announce(f"{name}: done before")
            return
    except ArtifactError:
        pass
    announce(name)
    for suffix in (".training", ".draft", ".text"):
        shutil.rmtree(artifact.with_name(artifact.name + suffix), ignore_errors=True)
    convert_checkpoint(source, artifact, recipe)


def _steps(artifact: Path, recipe: Recipe, text: Path | None, announce: Callable[[str], None]) -> list[Step]:
    manual = _manual(artifact)
    file = text or manual / TEST_FILE

    def manifest() -> Manifest:
        return read_manifest(artifact)

    def exported() -> set[str]:
        return {one.precision for one in manifest().exports if one.kind == "verifier"}

    def measured() -> set[tuple[str, int]]:
        return {(one.file, one.context) for one in manifest().evaluations}

    wanted = recipe.eval
    return [
        Step(
            name="take the Python manual as text to train and evaluate on",
            done=(manual / TEST_FILE).is_file,
            run=lambda: _write_manual(manual),
        ),
        Step(
            name=f"fine-tune: {', '.join(stage.kind for stage in recipe.stages) or 'no stages'}",
            done=lambda: len(manifest().training) >= len(recipe.stages),
            run=lambda: finetune(artifact, recipe, Options(resume=True)),
        ),
        Step(
            name=f"measure perplexity on {file.name}",
            done=lambda: {(file.name, context) for context in wanted.context} <= measured(),
            run=lambda: measure_quality(
                artifact, [file], context=wanted.context, tokens=wanted.tokens, progress=stderr_progress()
            ),
        ),
        Step(
            name="train draft heads on the model's own text",
            done=lambda: recipe.draft is None or bool(manifest().drafts),
            run=lambda: train_draft(artifact, recipe),
        ),
        Step(
            name=f"export onnx: {', '.join(PRECISIONS)}",
            done=lambda: set(PRECISIONS) <= exported(),
            run=lambda: export_onnx(artifact, precisions=PRECISIONS, progress=announce),
        ),
    ]


def _write_manual(folder: Path) -> None:
    """The Python manual, text that every interpreter brings along: three topics of four to train on.

    Topics repeat each other's paragraphs; those of the training text are left out of the evaluation text.
    """
    names = sorted(topics)
    train = [one for i, name in enumerate(names) if i % 4 for one in topics[name].strip().split("\n\n")]
    test = [one for name in names[::4] for one in topics[name].strip().split("\n\n")]
    seen = set(train)
    write_text(folder / TRAIN_FILE, "\n\n".join(train))
    write_text(folder / TEST_FILE, "\n\n".join(one for one in test if one not in seen))
