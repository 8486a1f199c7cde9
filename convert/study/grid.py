"""A study's cells: every method of every comparison, with its settings or the reason why it has none."""

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lineahead.convert.training.checkpoint import digest
from lineahead.errors import InputError, LineaheadError
from lineahead.plugins.augmented_attention.methods import PRESETS, preset
from lineahead.plugins.augmented_attention.schema import AttentionSettings
from lineahead.recipes.schema import Method
from lineahead.recipes.study.schema import ALL, SOFTMAX, Comparison, NamedMethod, Study, StudyModel

AUGMENTED = "augmented-"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training run and its figures.

    Attributes:
        name: unique in the study; names its files.
        model: the model's name in the study.
        task: the task's.
        method: what the tables call it, without ``augmented-``.
        augmented: whether it is the augmented form of `method`.
        settings: the operator's; None for softmax attention and for a linear attention of the model's own.
        origin: the study's model, its config that of the variant.
        refused: why the settings are impossible; None when they are not.
        row: the comparison that it belongs to.
        seed: of weights, data order and dropout.
        digest: of everything that decides its result.
    """

    name: str
    model: str
    task: str
    method: str
    augmented: bool
    settings: AttentionSettings | None
    origin: StudyModel
    refused: str | None
    row: Comparison
    seed: int
    digest: str


def cells(study: Study, only: Sequence[str] = ()) -> list[Cell]:
    """The cells of a study in the order of its file.

    Args:
        study: the study.
        only: patterns of cell names (``gpt2-*``); all when empty.

    Raises:
        InputError: when a pattern names no cell.
    """
    found = {
        cell.name: cell for row in study.grid for seed in row.seeds for cell in _row_cells(study, row, seed)
    }
    for pattern in only:
        if not fnmatch.filter(found, pattern):
            raise InputError(
                f"no cell {pattern!r} in study {study.name!r}", hint=f"Cells are: {', '.join(found)}."
            )
    return [
        cell for name, cell in found.items() if not only or any(fnmatch.fnmatch(name, one) for one in only)
    ]


def spelled_out(wanted: Iterable[NamedMethod]) -> Iterator[NamedMethod]:
    """The methods of a comparison, ``all`` and the augmented forms spelled out, each once."""
    seen: set[str] = set()
    for one in wanted:
        names = [one.name]
        if one.is_bare:
            names = list(PRESETS) if one.name == ALL else [one.name, AUGMENTED + one.name]
        for name in names:
            known = name == one.name or name in PRESETS
            if known and name not in seen:
                seen.add(name)
                yield one if name == one.name else NamedMethod(name=name, preset=name)


def _row_cells(study: Study, row: Comparison, seed: int) -> Iterator[Cell]:
    if row.variants:
        for name, config in row.variants.items():
            yield _cell(study, row, seed, name, config=config)
        return
    for method in spelled_out(row.methods):
        settings, refused = _settings(method, row.settings)
        yield _cell(study, row, seed, method.name, settings=settings, refused=refused)


def _cell(
    study: Study,
    row: Comparison,
    seed: int,
    name: str,
    *,
    settings: AttentionSettings | None = None,
    refused: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> Cell:
    plain = name.removeprefix(AUGMENTED)
    suffix = f"-seed{seed}" if len(row.seeds) > 1 else ""
    model = study.models[row.model]
    if config:
        model = model.model_copy(update={"config": {**model.config, **config}})
    facts: dict[str, Any] = {
        "model": model.model_dump(mode="json"),
        "task": study.tasks[row.task].model_dump(mode="json"),
        "settings": None if settings is None else settings.as_dict(),
        "stages": [stage.model_dump(mode="json") for stage in row.stages],
        "precision": study.precision,
        "products": study.products,
        "seed": seed,
    }
    return Cell(
        name=f"{row.model}-{row.task}-{name}{suffix}",
        model=row.model,
        task=row.task,
        method=plain,
        augmented=name != plain,
        settings=settings,
        origin=model,
        refused=refused,
        row=row,
        seed=seed,
        digest=digest(facts),
    )


def _settings(method: NamedMethod, changes: Method) -> tuple[AttentionSettings | None, str | None]:
    """The operator's settings, and why there are none."""
    if method.preset == SOFTMAX:
        return None, None
    try:
        return preset(method.preset, **{**changes.changes(), **method.changes()}), None
    except LineaheadError as error:
        return None, str(error)
