"""All cells of one method on one family: a tiny random model, every form, every scenario."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from lineahead.convert.conformance.cells import FORMS, SCENARIOS, Cell, Form, Status, absence, judged
from lineahead.convert.conformance.observe import Seen
from lineahead.convert.conformance.observers import GIVEN_POSITIONS, Observe, observers
from lineahead.convert.conformance.oracle import (
    Text,
    encoded,
    expected_logits,
    float64_model,
    reference_model,
)
from lineahead.convert.onnx.parity import scaled_error
from lineahead.errors import LineaheadError
from lineahead.recipes.kind import Kind

logger = logging.getLogger(__name__)
LOOPED = 40  # tokens of the longest text that the per-token reference is run on
OWN_CODE: tuple[Form, ...] = ("training", "generate")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is measured.

    Attributes:
        family: transformers' model type.
        kind: what of it.
        preset: the method.
        forms: which forms to run.
    """

    family: str
    kind: Kind
    preset: str
    forms: tuple[Form, ...] = tuple(FORMS)

    def cell(self, form: Form, scenario: str, **facts: Any) -> Cell:
        """A cell of this subject."""
        return Cell(
            family=self.family, kind=self.kind, preset=self.preset, form=form, scenario=scenario, **facts
        )


def refused(subject: Subject, reason: str) -> list[Cell]:
    """Every cell of a method that cannot serve a family, with the reason."""
    found = []
    for form in subject.forms:
        for scenario in SCENARIOS:
            why = absence(subject.kind, form, scenario)
            status: Status = "refused" if why is None else "absent"
            found.append(subject.cell(form, scenario, status=status, reason=why or reason))
    return found


def measure(
    model: PreTrainedModel,
    subject: Subject,
    *,
    graph: Path | None = None,
    own: PreTrainedModel | None = None,
    prefix: Text = (),
) -> list[Cell]:
    """Compare every form of a linear model with the per-token reference.

    Args:
        model: a linear model, float32, on the CPU, its operators' weights not trivial; not changed.
        subject: what it is called, and which forms to run.
        graph: its exported step graph; traced here when None.
        own: the same model made by the code that comes with it, for the forms that transformers runs.
        prefix: tokens before every text. After a long one the yardstick is the training form in float64,
            which the form ``reference`` compares with the per-token reference on a short text.

    Returns:
        One cell per form and scenario.
    """
    found: dict[tuple[Form, str], list[Seen] | Cell] = {}
    for form in subject.forms:
        try:
            runs = own if own is not None and form in OWN_CODE else model
            scenarios = observers(runs, subject.kind, form, graph, prefix)
        except LineaheadError as error:
            one = replace(subject, forms=(form,))
            found |= {(form, cell.scenario): cell for cell in refused(one, str(error))}
            continue
        except Exception as error:  # any of 200 models, traced
            logger.info("%s %s %s", subject.family, subject.preset, form, exc_info=True)
            for scenario in SCENARIOS:
                found[form, scenario] = subject.cell(form, scenario, status="failed", reason=_line(error))
            continue
        for scenario in SCENARIOS:
            found[form, scenario] = _run(subject, form, scenario, scenarios.get(scenario))
    expected = _expected(
        model, {(one.source, one.text) for seen in found.values() if isinstance(seen, list) for one in seen}
    )
    return [
        seen if isinstance(seen, Cell) else _judge(subject, form, scenario, seen, expected)
        for (form, scenario), seen in found.items()
    ]


def _run(subject: Subject, form: Form, scenario: str, observer: Observe | None) -> list[Seen] | Cell:
    why = absence(subject.kind, form, scenario)
    if why is None and observer is None:
        why = "as many key heads as query heads"
        if scenario in GIVEN_POSITIONS:
            why = "the model does not take the positions that generate() gives"
    if why is not None or observer is None:
        return subject.cell(form, scenario, status="absent", reason=why)
    try:
        return observer()
    except LineaheadError as error:
        return subject.cell(form, scenario, status="refused", reason=str(error))
    except Exception as error:  # any of 200 models
        logger.info("%s %s %s %s", subject.family, subject.preset, form, scenario, exc_info=True)
        return subject.cell(form, scenario, status="failed", reason=_line(error))


def _expected(model: PreTrainedModel, wanted: set[tuple[Text, Text]]) -> dict[tuple[Text, Text], Any]:
    """The yardstick: logits ``[V]`` by source and text, and hidden states ``[N, C]`` of sources alone."""
    found: dict[tuple[Text, Text], Any] = {}
    for make, longer in ((reference_model, False), (float64_model, True)):
        mine = sorted(one for one in wanted if (max(map(len, one)) > LOOPED) == longer)
        twin = make(model) if mine else model
        for source in dict.fromkeys(source for source, _ in mine):
            texts = [text for one, text in mine if one == source and text]
            if (source, ()) in mine:
                found[source, ()] = encoded(twin, input_ids=torch.tensor([source]))[0].double().numpy()
            longest: list[Text] = []
            for text in sorted(texts, key=len, reverse=True):
                if not any(one[: len(text)] == text for one in longest):
                    longest.append(text)
            rows = expected_logits(twin, longest, source) if longest else {}
            for text in texts:
                whole = next(one for one in longest if one[: len(text)] == text)
                found[source, text] = rows[whole][len(text) - 1]
    return found


def _judge(
    subject: Subject, form: Form, scenario: str, seen: Sequence[Seen], expected: dict[tuple[Text, Text], Any]
) -> Cell:
    error = max(
        scaled_error(expected[one.source, one.text], np.asarray(one.logits, np.float64)) for one in seen
    )
    status, reason = judged(error, form)
    return subject.cell(form, scenario, status=status, error=error, reason=reason)


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
