"""Measure a grid of families and methods in processes of their own; rows measured before are kept."""

import functools
import hashlib
import importlib.metadata
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path

import torch
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

import lineahead
from lineahead.convert.conformance.cells import FORMS, Cell, Form
from lineahead.convert.conformance.measure import Subject, measure, refused
from lineahead.convert.conformance.observe import shrunk
from lineahead.convert.replace import linearize
from lineahead.convert.tiny_models import limit_memory, randomize, tiny_model
from lineahead.errors import ArchitectureError, InputError, LineaheadError
from lineahead.plugins.augmented_attention.methods import PRESETS
from lineahead.recipes.files import holding, write_text
from lineahead.recipes.kind import Kind

KINDS: dict[Kind, Sequence[str]] = {
    "decoder": tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    "encoder": tuple(
        name
        for name in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        if name not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    ),
    "encoder-decoder": tuple(MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
}
PACKAGES = ("torch", "transformers", "onnxruntime")


def subjects(
    families: Sequence[str] = (), presets: Sequence[str] = (), forms: Sequence[Form] = ()
) -> list[Subject]:
    """The grid: every method on every model type of transformers, or those named.

    Args:
        families: model types; all when empty.
        presets: methods; all when empty.
        forms: forms; all when empty.

    Raises:
        InputError: naming what is unknown.
    """
    known = dict.fromkeys(name for names in KINDS.values() for name in sorted(names))
    for what, given, there in (("family", families, known), ("preset", presets, PRESETS)):
        odd = next((one for one in given if one not in there), None)
        if odd is not None:
            raise InputError(f"no {what} {odd!r}", hint=f"Choose among: {', '.join(there)}.")
    return [
        Subject(family=family, kind=kind, preset=preset, forms=tuple(forms or FORMS))
        for kind, names in KINDS.items()
        for family in sorted(families or names)
        if family in names
        for preset in presets or PRESETS
    ]


def measure_subject(subject: Subject) -> list[Cell]:
    """All cells of one method on one family, made here with random weights."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = tiny_model(subject.family, kind=subject.kind)
        except ArchitectureError as error:
            return _all(subject, "failed", str(error))
        try:
            linearize(model, shrunk(PRESETS[subject.preset]))
        except LineaheadError as error:
            return refused(subject, str(error))
        randomize(model)
        return measure(model, subject)


def _all(subject: Subject, status: str, reason: str) -> list[Cell]:
    return [
        replace(cell, status=status) if cell.status == "refused" else cell  # type: ignore[arg-type]
        for cell in refused(subject, reason)
    ]


def run_grid(grid: Sequence[Subject], *, workers: int = 1) -> Iterator[list[Cell]]:
    """Measure subjects, each as soon as a process is free.

    Args:
        grid: what to measure.
        workers: processes, of one thread each; with 1 everything runs in this one.

    Yields:
        The cells of one subject at a time, in the order in which they are done.
    """
    if workers <= 1:
        yield from map(measure_subject, grid)
        return
    left = list(grid)
    while left:
        died = None
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_begin) as pool:
            running = {pool.submit(measure_subject, subject): subject for subject in left}
            for future in as_completed(running):
                subject = running[future]
                try:
                    cells = future.result()
                except BrokenProcessPool:
                    died = died or subject
                    continue
                left.remove(subject)
                yield cells
        if died is not None:  # which one it was is not known: the first unfinished one is tried alone
            left.remove(died)
            yield _alone(died)


def _alone(subject: Subject) -> list[Cell]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_begin) as pool:
        try:
            return pool.submit(measure_subject, subject).result()
        except BrokenProcessPool:
            return _all(subject, "failed", "the process died (memory)")


def _begin() -> None:
    """A worker process: one thread, and no more memory than its share."""
    torch.set_num_threads(1)
    limit_memory()


@functools.cache
def versions() -> dict[str, str]:
    """What the cells depend on: libraries, and a digest of this package's operator and conversion code.

    It is read once: code that changes while a run goes on is not the code that runs.
    """
    root, digest = Path(lineahead.__file__).parent, hashlib.sha256()
    for folder in ("plugins", "convert"):
        for path in sorted((root / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"lineahead": f"{lineahead.__version__}, code {digest.hexdigest()[:12]}", **found}


def keep_cells(path: Path, cells: Sequence[Cell]) -> list[Cell]:
    """Add cells to those that this run and others keep in a file, with the versions that they hold for.

    Args:
        path: the file; what other versions measured is dropped.
        cells: new ones, in the place of those of the same subject, form and scenario.

    Returns:
        All cells of the file.

    Raises:
        StorageError: when the file cannot be written.
    """
    with holding(path):
        found = {_key(cell): cell for cell in (*load_cells(path), *cells)}
        rows = [
            {name: value for name, value in asdict(cell).items() if value not in (None, "")}
            for cell in found.values()
        ]
        write_text(path, json.dumps({"versions": versions(), "cells": rows}) + "\n")
    return list(found.values())


def _key(cell: Cell) -> tuple[str, ...]:
    return (cell.family, cell.kind, cell.preset, cell.form, cell.scenario)


def load_cells(path: Path) -> list[Cell]:
    """Cells that :func:`keep_cells` wrote under the same versions; none otherwise."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return [Cell(**row) for row in data["cells"]] if data["versions"] == versions() else []
    except (OSError, ValueError, KeyError, TypeError):
        return []
