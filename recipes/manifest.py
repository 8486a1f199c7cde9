"""What was made: ``lineahead.json`` in every artifact folder. Imports without torch."""

import datetime
import importlib.metadata
import platform
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lineahead import __version__
from lineahead.errors import ArtifactError
from lineahead.recipes.files import write_text
from lineahead.recipes.json_file import read_object

FILE = "lineahead.json"
FORMAT = 1
TOOLS = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "safetensors",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "numpy",
)


class Record(BaseModel):
    """A section of the manifest: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Base(Record):
    """The checkpoint that was converted.

    Attributes:
        reference: Hub id, folder or GGUF file as given.
        revision: commit of the Hub repository.
        model_type: transformers' name of the architecture.
        files: SHA-256 of its files, by name.
        trust_remote_code: whether its own code was run.
        license: as its model card, file or package states it.
    """

    reference: str
    revision: str | None = None
    model_type: str
    files: dict[str, str] = {}
    trust_remote_code: bool = False
    license: str | None = None


class SoftmaxLayer(Record):
    """An attention layer that is not converted.

    Attributes:
        index: its index.
        window: tokens that it sees; 0 when it sees the whole text.
        state_bytes: of its keys and values per sequence, whatever the context, in float32; 0 if they grow.
        bytes_per_token: by which they grow; 0 if they do not.
    """

    index: int
    window: int = 0
    state_bytes: int = 0
    bytes_per_token: int = 0


class Model(Record):
    """The converted model's dimensions.

    Attributes:
        vocab_size: logits' width.
        hidden_size: width of the hidden states that the LM head reads.
        max_position: longest text that the position table covers; None where there is no limit.
        layers: number of layers; of an encoder-decoder, in the deeper of its halves.
        linear_layers: indices of the converted ones, in any half.
        settings: the operator's settings, as saved in ``config.json``; of an encoder, the method's; empty
            when no layer is converted.
        role_settings: those of the layers that are no decoder's self-attention: ``encoder``, ``cross``.
        parameters: number of parameters.
        new_parameters: how many of them conversion added.
        state_bytes: bytes of the decoding state per sequence, whatever the context, in float32; windows of
            softmax layers are counted, caches that grow are not.
        softmax_layers: the attention layers that are not converted.
    """

    vocab_size: int
    hidden_size: int
    max_position: int | None = None
    layers: int
    linear_layers: tuple[int, ...]
    settings: dict[str, Any]
    role_settings: dict[str, dict[str, Any]] = {}
    parameters: int
    new_parameters: int
    state_bytes: int
    softmax_layers: tuple[SoftmaxLayer, ...] = ()

    @property
    def bytes_per_token(self) -> int:
        """By how much the decoding state grows with every token, per sequence, in float32."""
        return sum(layer.bytes_per_token for layer in self.softmax_layers)


class Training(Record):
    """One finished training stage.

    Attributes:
        run: the run it belongs to; a resumed run keeps its name.
        stage: its number in the recipe.
        kind: ``transfer`` or ``distill``.
        steps: optimiser steps.
        tokens: tokens seen.
        seconds: wall time, interruptions excluded.
        seed: of data order and dropout.
        data: where the text came from.
        data_hash: SHA-256 of the token ids.
        losses: the last losses by name, averaged over the last tenth of the stage.
        device: ``cpu`` or ``cuda``.
        precision: of the frozen weights.
    """

    run: str
    stage: int
    kind: str
    steps: int
    tokens: int
    seconds: float
    seed: int
    data: str
    data_hash: str
    losses: dict[str, float]
    device: str
    precision: str


class Evaluation(Record):
    """One perplexity measurement, teacher beside student.

    Attributes:
        file: the text file's name.
        file_hash: its SHA-256.
        context: tokens of context.
        stride: tokens between windows.
        tokens: tokens that were predicted.
        perplexity: by model: ``teacher``, ``student``.
        bits_per_byte: likewise.
    """

    file: str
    file_hash: str
    context: int
    stride: int
    tokens: int
    perplexity: dict[str, float]
    bits_per_byte: dict[str, float]


class Recall(Record):
    """Questions about one fact of a long text, teacher beside student.

    Attributes:
        test: ``needle`` or ``pairs``.
        context: tokens of the text.
        cases: number of questions.
        accuracy: share that was answered, by model: ``teacher``, ``student``.
    """

    test: str
    context: int
    cases: int
    accuracy: dict[str, float]


class Agreement(Record):
    """Whether the student would say what the teacher says.

    Attributes:
        file: the text file's name.
        context: tokens of context.
        tokens: positions compared.
        top1: share of them where the likeliest token is the same.
        kl: mean KL(teacher, student) in nats.
    """

    file: str
    context: int
    tokens: int
    top1: float
    kl: float


class TaskScore(Record):
    """One metric of an lm-eval task, teacher beside student.

    Attributes:
        task: its name.
        metric: the metric's name and filter, as lm-eval writes them.
        cases: number of examples.
        value: by model: ``teacher``, ``student``.
    """

    task: str
    metric: str
    cases: int
    value: dict[str, float]


class Export(Record):
    """One exported graph or engine.

    Attributes:
        file: its path in the artifact folder.
        kind: ``verifier`` or ``draft``.
        precision: of its weights.
        opset: ONNX operator set.
        bytes: size with its external data.
        sha256: of the graph file.
        data_sha256: of the weights beside it, ``<file>.data``; empty when the graph holds them.
        parity: largest differences from eager, by output.
    """

    file: str
    kind: str
    precision: str
    opset: int
    bytes: int = 0
    sha256: str = ""
    data_sha256: str = ""
    parity: dict[str, float] = {}


class Draft(Record):
    """One set of draft heads.

    Attributes:
        folder: where it is in the artifact folder.
        kind: ``medusa``.
        heads: K.
        vocabulary: tokens that it can propose.
        tokens: training tokens.
        data_hash: SHA-256 of their ids.
        top1: held-out accuracy per head.
        top5: likewise, among the five best.
    """

    folder: str
    kind: str
    heads: int
    vocabulary: int
    tokens: int
    data_hash: str
    top1: tuple[float, ...]
    top5: tuple[float, ...]


class Logits(Record):
    """What the model says to a fixed text, so that any copy can be compared with the one that was made.

    Attributes:
        tokens: the text.
        positions: where logits were read.
        ids: the tokens with the largest logits, for each position.
        values: their logits.
        dtype: of the weights.
    """

    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    ids: tuple[tuple[int, ...], ...]
    values: tuple[tuple[float, ...], ...]
    dtype: str


class Manifest(Record):
    """The whole of ``lineahead.json``.

    Attributes:
        format: version of this file's layout.
        lineahead: version of the package that wrote it last.
        created: UTC time of the conversion.
        base: the checkpoint that was converted.
        base_weights: ``original``: the pretrained weights are unchanged, so the model is its own teacher;
            ``trained``
            otherwise.
        recipe: the resolved recipe.
        model: dimensions.
        training: finished stages, in order.
        evaluations: perplexities.
        recalls: tests of recall.
        agreements: how often student and teacher say the same.
        tasks: scores of lm-eval tasks.
        exports: graphs and engines.
        drafts: draft heads.
        files: SHA-256 of weights, config, code and tokenizer, by path in the folder.
        logits: what the model says to a fixed text; None where it is no language model.
        tools: versions of the libraries that wrote it.
    """

    format: int = FORMAT
    lineahead: str = __version__
    created: str = Field(
        default_factory=lambda: datetime.datetime.now(datetime.timezone.utc).isoformat("T", "seconds")
    )
    base: Base
    base_weights: str = "original"
    recipe: dict[str, Any]
    model: Model
    training: tuple[Training, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    recalls: tuple[Recall, ...] = ()
    agreements: tuple[Agreement, ...] = ()
    tasks: tuple[TaskScore, ...] = ()
    exports: tuple[Export, ...] = ()
    drafts: tuple[Draft, ...] = ()
    files: dict[str, str] = {}
    logits: Logits | None = None
    tools: dict[str, str] = Field(default_factory=lambda: tool_versions())


def tool_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that are installed."""
    versions = {"python": platform.python_version()}
    for name in TOOLS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``lineahead.json`` in one step.

    Raises:
        StorageError: when it cannot be written.
    """
    current = manifest.model_copy(update={"lineahead": __version__, "tools": tool_versions()})
    write_text(folder / FILE, current.model_dump_json(indent=2) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Read ``lineahead.json``.

    Raises:
        ArtifactError: when it is missing, damaged, or written by a newer version.
    """
    path = folder / FILE
    if not path.is_file():
        raise ArtifactError(
            f"{folder}: no {FILE}: not an artifact folder", hint="Make one with `lineahead convert`."
        )
    data = read_object(path, error=ArtifactError, hint="Convert the checkpoint again.")
    version = data.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise ArtifactError(
            f"{path}: format {version}, but this version reads up to {FORMAT}", hint="Upgrade lineahead."
        )
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{path}: {key}: {first['msg']}", hint="Convert the checkpoint again.") from error
