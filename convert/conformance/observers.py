"""What each form does in each scenario, by kind of model: decoders, encoders, and both together."""

import copy
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import cast

from torch import nn
from transformers import PreTrainedModel

from lineahead.convert.conformance import observe
from lineahead.convert.conformance.cells import Form
from lineahead.convert.conformance.observe import Seen
from lineahead.convert.conformance.oracle import Text, float64_model
from lineahead.convert.onnx.graph import save, trace
from lineahead.convert.onnx.parity import backend_of, open_backend
from lineahead.convert.onnx.rollout import Array, Backend, Case
from lineahead.plugins.augmented_attention.huggingface.layers import LinearLayer
from lineahead.plugins.augmented_attention.huggingface.modeling import layers_of
from lineahead.plugins.augmented_attention.huggingface.seq2seq_step import Seq2SeqStepModel
from lineahead.plugins.augmented_attention.huggingface.step_model import StepModel
from lineahead.recipes.kind import Kind

GIVEN_POSITIONS = ("left padding", "decode", "batch")
HELD = 40  # rows of the caches of softmax layers, beside a prefix
Observe = Callable[[], list[Seen]]
Observers = dict[str, Observe]


def observers(
    model: PreTrainedModel, kind: Kind, form: Form, graph: Path | None = None, prefix: Text = ()
) -> Observers:
    """What `form` does in each scenario that it knows.

    Args:
        model: a linear model, float32; not changed.
        kind: what of a model it is.
        form: the implementation.
        graph: exported step graph; traced here when None.
        prefix: tokens before every text.

    Raises:
        LineaheadError: when the model has no such form.
    """
    vocabulary = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
    texts = observe.drawn_texts(vocabulary)
    if kind == "encoder":
        return _encoder(model, form, texts, prefix)
    if kind == "encoder-decoder":
        return _encoder_decoder(model, form, texts, vocabulary, prefix)
    return _decoder(model, form, texts, vocabulary, graph=graph, prefix=prefix)


def _encoder(model: PreTrainedModel, form: Form, short: list[Text], prefix: Text) -> Observers:
    texts = [prefix + text for text in short]
    if form == "reference":
        double = float64_model(model)
        found: Observers = {"encoder": lambda: observe.read(double, short[:1])}
    elif form == "training":
        found = {
            "encoder": lambda: observe.read(model, texts[:1]),
            "batch": lambda: observe.read(model, texts),
            "left padding": lambda: observe.read(model, texts, left=True),
        }
    else:
        return {}
    return _grouped(found, layers_of(model.config), "encoder")


def _encoder_decoder(
    model: PreTrainedModel, form: Form, short: list[Text], vocabulary: int, prefix: Text
) -> Observers:
    """Targets are the sources backwards; there are fewer tokens in one of the sources than in its target."""
    sources = [prefix + text for text in short]
    first, second = (prefix + text[::-1] for text in short)
    length, layers, pair, before = len(second), layers_of(model.config), [first, second], len(prefix)
    crossed = [second, first[:length]]  # each beside the other's source
    sizes = (before + observe.CHUNKS[0], *observe.CHUNKS[1:])
    found: Observers
    if form == "reference":
        double, brief = float64_model(model), short[0][::-1]
        found = {
            "encoder": lambda: observe.read(double, short[:1]),
            "prefill": lambda: observe.whole(double, [brief], short[:1]),
            "cross attention": lambda: observe.whole(double, [brief], short[1:]),
        }
    elif form == "training":
        found = {
            "encoder": lambda: observe.read(model, sources),
            "prefill": lambda: observe.whole(model, pair[:1], sources[:1]),
            "batch": lambda: observe.whole(model, pair, sources),
            "cross attention": lambda: observe.whole(model, crossed, sources),
        }
    elif form == "generate":
        found = {
            "prefill": lambda: observe.cached(model, pair[:1], [len(first)], sources[:1]),
            "chunked prefill": lambda: observe.cached(model, pair[:1], sizes, sources[:1]),
            "decode": lambda: observe.generated(model, [(observe.START, *prefix)], sources[:1], tokens=9),
            "chain": lambda: observe.cropped(model, first, sources[0], start=before + 3),
            "batch": lambda: observe.generated(model, [(observe.START, *prefix)] * 2, sources),
            "cross attention": lambda: observe.cached(model, crossed, (before + 4, 1, 2), sources),
        }
    else:
        stepper = (Seq2SeqStepModel if form == "step" else StepModel)(_copy(model), layers)
        assert isinstance(stepper, Seq2SeqStepModel)  # the other refuses
        cases = observe.step_cases(vocabulary, prefix)
        ways = {**{name: (name, sources) for name in cases}, "cross attention": ("batch", sources[::-1])}
        found = {
            name: functools.partial(_after_reading, stepper, cases[case], read)
            for name, (case, read) in ways.items()
        }
    return _grouped(found, layers, "batch" if form == "step" else "prefill")


def _after_reading(stepper: Seq2SeqStepModel, case: Case, sources: list[Text]) -> list[Seen]:
    """A case of the step graph from a state in which one source a row was read, padded to one length."""
    rows = sources[: len(case.turns[0].tokens)]
    ids, mask = observe.padded(rows, left=False)
    summaries = stepper.read(ids, mask.bool())
    empty = stepper.empty(len(rows))[: -len(summaries)]
    return observe.stepped(backend_of(stepper), case, [x.numpy() for x in (*empty, *summaries)], rows)


def _decoder(
    model: PreTrainedModel,
    form: Form,
    short: list[Text],
    vocabulary: int,
    *,
    graph: Path | None,
    prefix: Text,
) -> Observers:
    layers: list[LinearLayer] = layers_of(model.config)
    first, second = (prefix + text for text in short)
    sizes = (len(prefix) + observe.CHUNKS[0], *observe.CHUNKS[1:])
    found: Observers
    again = "prefill"
    if form == "reference":
        double = float64_model(model)
        found = {"prefill": lambda: observe.whole(double, short[:1])}
    elif form == "training":
        found = {
            "prefill": lambda: observe.whole(model, [first]),
            "batch": lambda: observe.whole(model, [first, second]),
            "left padding": lambda: observe.whole(model, [first, second], left=True),
        }
    elif form == "generate":
        found = {
            "prefill": lambda: observe.cached(model, [first], [len(first)]),
            "chunked prefill": lambda: observe.cached(model, [first], sizes),
            "decode": lambda: observe.generated(model, [first]),
            "chain": lambda: observe.cropped(model, first, start=len(prefix) + 3),
            "batch": lambda: observe.generated(model, [first[:-5], second[: len(first) - 5]]),
            "left padding": lambda: observe.generated(model, [first, second]),
        }
        again = "chunked prefill"
    else:
        backend, empty = _stepper(model, layers, rows=len(prefix) + HELD)
        if form == "onnxruntime":
            backend = _traced(model, layers) if graph is None else open_backend(graph)
        found = {
            name: functools.partial(observe.stepped, backend, case, empty)
            for name, case in observe.step_cases(vocabulary, prefix).items()
        }
        again = "batch"
    for scenario in GIVEN_POSITIONS if not observe.takes_positions(model) else ():
        found.pop(scenario, None)
    return _grouped(found, layers, again)


def _grouped(found: Observers, layers: list[LinearLayer], again: str) -> Observers:
    """With the scenario `again` for GQA, where there are fewer key heads than query heads."""
    shared = any(layer.shape.heads != layer.shape.kv_heads for layer in layers)
    return {**found, "GQA": found[again]} if shared and again in found else found


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
