"""All cells of one method on one family: a tiny random model, every form, every scenario."""

import copy
import functools
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from lineahead.convert.conformance import observe
from lineahead.convert.conformance.cells import ABSENT, FORMS, SCENARIOS, Cell, Form, Kind, judged
from lineahead.convert.conformance.observe import Seen
from lineahead.convert.conformance.oracle import Text, expected_logits, float64_model, reference_model
from lineahead.convert.onnx.graph import save, trace
from lineahead.convert.onnx.parity import backend_of, open_backend, scaled_error
from lineahead.convert.onnx.rollout import Array, Backend
from lineahead.errors import LineaheadError
from lineahead.plugins.augmented_attention.huggingface.layers import LinearLayer
from lineahead.plugins.augmented_attention.huggingface.modeling import layers_of
from lineahead.plugins.augmented_attention.huggingface.step_model import StepModel

logger = logging.getLogger(__name__)
GIVEN_POSITIONS = ("left padding", "decode", "batch")
LOOPED = 40  # tokens of the longest text that the per-token reference is run on
OWN_CODE: tuple[Form, ...] = ("training", "generate")
Observe = Callable[[], list[Seen]]


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
    return [
        subject.cell(form, scenario, status="absent", reason=ABSENT[form, scenario])
        if (form, scenario) in ABSENT
        else subject.cell(form, scenario, status="refused", reason=reason)
        for form in subject.forms
        for scenario in SCENARIOS
    ]


def measure(
    model: PreTrainedModel,
    subject: Subject,
    *,
    graph: Path | None = None,
    own: PreTrainedModel | None = None,
    prefix: Text = (),
) -> list[Cell]:
    """Compare every form of a linear causal model with the per-token reference.

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
            scenarios = _observers(
                own if own is not None and form in OWN_CODE else model, form, graph, prefix
            )
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
    texts = {one.text for seen in found.values() if isinstance(seen, list) for one in seen}
    expected = _expected(model, texts)
    return [
        seen if isinstance(seen, Cell) else _judge(subject, form, scenario, seen, expected)
        for (form, scenario), seen in found.items()
    ]


def _run(subject: Subject, form: Form, scenario: str, observer: Observe | None) -> list[Seen] | Cell:
    if (form, scenario) in ABSENT:
        return subject.cell(form, scenario, status="absent", reason=ABSENT[form, scenario])
    if observer is None:
        reasons = {
            "GQA": "as many key heads as query heads",
            "encoder": "a decoder",
            "cross attention": "no encoder",
            **dict.fromkeys(GIVEN_POSITIONS, "the model does not take the positions that generate() gives"),
        }
        return subject.cell(form, scenario, status="absent", reason=reasons[scenario])
    try:
        return observer()
    except LineaheadError as error:
        return subject.cell(form, scenario, status="refused", reason=str(error))
    except Exception as error:  # any of 200 models
        logger.info("%s %s %s %s", subject.family, subject.preset, form, scenario, exc_info=True)
        return subject.cell(form, scenario, status="failed", reason=_line(error))


def _expected(model: PreTrainedModel, texts: set[Text]) -> dict[Text, Any]:
    """The yardstick's logits ``[V]`` after each text."""
    found: dict[Text, Any] = {}
    for make, mine in (
        (reference_model, {one for one in texts if len(one) <= LOOPED}),
        (float64_model, {one for one in texts if len(one) > LOOPED}),
    ):
        longest: list[Text] = []
        for text in sorted(mine, key=len, reverse=True):
            if not any(one[: len(text)] == text for one in longest):
                longest.append(text)
        for one, rows in (expected_logits(make(model), longest) if longest else {}).items():
            found |= {one[: i + 1]: row for i, row in enumerate(rows) if one[: i + 1] in mine}
    return found


def _judge(
    subject: Subject, form: Form, scenario: str, seen: Sequence[Seen], expected: dict[Text, Any]
) -> Cell:
    error = max(scaled_error(expected[one.text], np.asarray(one.logits, np.float64)) for one in seen)
    status, reason = judged(error, form)
    return subject.cell(form, scenario, status=status, error=error, reason=reason)


def _observers(model: PreTrainedModel, form: Form, graph: Path | None, prefix: Text) -> dict[str, Observe]:
    """What a form does in each scenario that it knows."""
    layers: list[LinearLayer] = layers_of(model.config)
    vocabulary = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
    short = observe.drawn_texts(vocabulary)
    first, second = (prefix + text for text in short)
    sizes = (len(prefix) + observe.CHUNKS[0], *observe.CHUNKS[1:])
    found: dict[str, Observe]
    if form == "reference":
        double = float64_model(model)
        found = {"prefill": lambda: observe.whole(double, short[:1])}
        again = "prefill"
    elif form == "training":
        found = {
            "prefill": lambda: observe.whole(model, [first]),
            "batch": lambda: observe.whole(model, [first, second]),
            "left padding": lambda: observe.whole(model, [first, second], left=True),
        }
        again = "prefill"
    elif form == "generate":
        found = {
            "prefill": lambda: observe.cached(model, first, [len(first)]),
            "chunked prefill": lambda: observe.cached(model, first, sizes),
            "decode": lambda: observe.generated(model, [first]),
            "chain": lambda: observe.cropped(model, first, start=len(prefix) + 3),
            "batch": lambda: observe.generated(model, [first[:-5], second[: len(first) - 5]]),
            "left padding": lambda: observe.generated(model, [first, second]),
        }
        again = "chunked prefill"
    else:
        backend, empty = _stepper(model, layers, rows=len(prefix) + LOOPED)
        if form == "onnxruntime":
            backend = _traced(model, layers) if graph is None else open_backend(graph)
        found = {
            name: functools.partial(observe.stepped, backend, case, empty)
            for name, case in observe.step_cases(vocabulary, prefix).items()
        }
        again = "batch"
    for scenario in GIVEN_POSITIONS if not observe.takes_positions(model) else ():
        found.pop(scenario, None)
    if any(layer.shape.heads != layer.shape.kv_heads for layer in layers):
        found["GQA"] = found[again]
    return found


def _stepper(model: PreTrainedModel, layers: list[LinearLayer], *, rows: int) -> tuple[Backend, list[Array]]:
    """The step graph in torch, and its empty state; caches of softmax layers hold `rows` tokens."""
    stepper = StepModel(_copy(model), layers)
    return backend_of(stepper), [x.numpy() for x in stepper.empty(1, rows=rows)]


def _traced(model: PreTrainedModel, layers: list[LinearLayer]) -> Backend:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "verifier.onnx"
        save(trace(StepModel(_copy(model), layers)), path)
        return open_backend(path)


def _copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy to be used up: the step model and float64 change what they are given."""
    twin: PreTrainedModel = copy.deepcopy(model)
    return twin


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
