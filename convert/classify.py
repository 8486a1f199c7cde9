"""Sequence classification: train a classifier and measure it beside the majority class."""

import json
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lineahead.convert.training import checkpoint
from lineahead.convert.training.devices import accelerate_on
from lineahead.convert.training.labelled import PADDING, Labelled, LabelledBatches, read_labelled
from lineahead.convert.training.loop import Run, resume_position, train
from lineahead.convert.training.progress import Progress, Silent, stderr_progress
from lineahead.convert.training.transfer import first_bad_gradient
from lineahead.convert.training.weights import is_new, resolve_precision
from lineahead.errors import ArchitectureError, InputError, TrainingError
from lineahead.recipes.schema import ClassifyStage

__all__ = ["Classified", "Labelled", "Options", "accuracy", "read_labelled", "train_classifier"]
logger = logging.getLogger(__name__)
CURVE = 200  # points kept of a loss curve


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a classifier is trained.

    Attributes:
        folder: where the checkpoint and ``metrics.jsonl`` go; made if need be.
        stage: rates, epochs or steps, batch size, text length.
        resume: go on from the folder's checkpoint, if there is one.
        seed: of the data order and dropout.
        device: ``cpu`` or ``cuda``; what accelerate finds when None.
        dropout: whether the model's own dropout is active.
        checkpoint_seconds: how often progress is saved.
        progress: where to report; a bar or lines on stderr when None.
        on_step: called after every optimiser step.
    """

    folder: Path
    stage: ClassifyStage = field(default_factory=ClassifyStage)
    resume: bool = False
    seed: int = 0
    device: str | None = None
    dropout: bool = True
    checkpoint_seconds: float = 120.0
    progress: Progress | None = None
    on_step: Callable[[int], None] = field(default=lambda step: None)


@dataclass(frozen=True, kw_only=True)
class Classified:
    """What training gave.

    Attributes:
        accuracy: share of the test texts classified right.
        majority: share that the commonest training class would get right.
        loss_curve: (step, mean loss since the point before), at most 200 points.
        steps: optimiser steps.
        seconds: wall time of training.
        train_examples: training texts.
        test_examples: test texts.
        classes: names of the classes.
        device: where it ran.
        precision: of the products.
    """

    accuracy: float
    majority: float
    loss_curve: tuple[tuple[int, float], ...]
    steps: int
    seconds: float
    train_examples: int
    test_examples: int
    classes: tuple[str, ...]
    device: str
    precision: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def train_classifier(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train_data: Labelled,
    test_data: Labelled,
    options: Options,
) -> Classified:
    """Train all weights of a classifier and measure its accuracy.

    Any ``...ForSequenceClassification`` model will do, linearized or not: encoders classify from their first
    token, decoders from a text's last one (``config.pad_token_id`` must be set), encoder-decoders from the
    decoder's last one.

    Args:
        model: changed in place; its head has at least as many outputs as there are classes.
        tokenizer: its tokenizer.
        train_data: what it learns from.
        test_data: what it is measured on; classes numbered alike.
        options: see :class:`Options`.

    Returns:
        Accuracy, the majority class's accuracy, and the loss curve.

    Raises:
        InputError: when the two files have different classes.
        ArchitectureError: when the model is no classifier of that many classes.
        TrainingError: when training fails, or is interrupted (progress is saved).
    """
    _check(model, train_data, test_data)
    stage, accelerator = options.stage, accelerate_on(options.device)
    precision = resolve_precision(stage.precision, accelerator.device)
    torch.manual_seed(options.seed)
    trainer = ClassifyTrainer(
        model.float().to(accelerator.device), stage, bf16=precision == "bf16", dropout=options.dropout
    )
    main = accelerator.is_main_process
    run = Run(
        stage=stage,
        index=0,
        trainer=trainer,
        batches=LabelledBatches.of(
            train_data,
            tokenizer,
            length=stage.sequence_length,
            batch_size=stage.batch_size,
            epochs=stage.epochs,
            seed=options.seed,
        ),
        folder=options.folder,
        accelerator=accelerator,
        progress=(options.progress or stderr_progress()) if main else Silent(),
        recipe=checkpoint.digest(stage.model_dump(mode="json") | {"seed": options.seed}),
        checkpoint_seconds=options.checkpoint_seconds,
        on_step=options.on_step,
    )
    options.folder.mkdir(parents=True, exist_ok=True)
    if not options.resume and (run.checkpoint_folder.exists() or run.metrics.path.exists()):
        raise TrainingError(
            f"{options.folder}: holds a training run already",
            hint="Continue it with resume, or choose another folder.",
        )
    train(run, resume_position(run))
    model.eval()
    found = accuracy(model, tokenizer, test_data, length=stage.sequence_length, autocast=trainer.autocast)
    return Classified(
        accuracy=found,
        majority=test_data.share(train_data.commonest),
        loss_curve=loss_curve(run.metrics.path, run.steps),
        steps=run.steps,
        seconds=round(run.seconds, 3),
        train_examples=len(train_data),
        test_examples=len(test_data),
        classes=train_data.names,
        device=accelerator.device.type,
        precision=precision,
    )


def _check(model: PreTrainedModel, train_data: Labelled, test_data: Labelled) -> None:
    if train_data.names != test_data.names:
        raise InputError(
            f"training classes {train_data.names} are not the test classes {test_data.names}",
            hint="Read the test file with the training file's names.",
        )
    classes = getattr(model.config, "num_labels", 0)
    if "ForSequenceClassification" not in type(model).__name__ or classes < len(train_data.names):
        raise ArchitectureError(
            f"{type(model).__name__} with {classes} outputs does not classify into {len(train_data.names)}",
            hint="Load it with AutoModelForSequenceClassification and num_labels.",
        )


class ClassifyTrainer:
    """Cross entropy over the classes; every weight is trained, in float32."""

    def __init__(self, model: PreTrainedModel, stage: ClassifyStage, *, bf16: bool, dropout: bool) -> None:
        """Prepare `model`; `dropout` keeps its own dropout active."""
        self._model, self._stage, self._bf16 = model.train(dropout).requires_grad_(True), stage, bf16
        self._last = float("nan")

    def autocast(self) -> AbstractContextManager[Any]:
        """Products in bfloat16, if so chosen."""
        if not self._bf16:
            return nullcontext()
        return torch.autocast(self._model.device.type, torch.bfloat16)

    def parameters(self) -> dict[str, tuple[nn.Parameter, float]]:
        """New parameters at ``learning_rate``, the others at ``base_learning_rate``."""
        rates = {True: self._stage.learning_rate, False: self._stage.base_learning_rate}
        return {name: (weight, rates[is_new(name)]) for name, weight in self._model.named_parameters()}

    def backward(self, batch: Tensor, share: float) -> dict[str, float]:
        """One pass over a batch of :class:`LabelledBatches`."""
        with self.autocast():
            logits = class_logits(self._model, batch)
        loss = functional.cross_entropy(logits.float(), batch[:, 0])
        (loss * share).backward()
        right = (logits.argmax(-1) == batch[:, 0]).float().mean()
        return {"loss": float(loss.detach()), "accuracy": float(right)}

    def after_step(self) -> None:
        """Nothing: the parameters trained are the model's own."""

    def updates(self) -> dict[str, Tensor]:
        """All parameters."""
        return {name: weight.detach() for name, weight in self._model.named_parameters()}

    def changes(self) -> dict[str, Tensor]:
        """Nothing is added to other weights."""
        return {}

    def culprit(self) -> str:
        """The layer of the first gradient that is not finite."""
        return first_bad_gradient(dict(self._model.named_parameters()))


def class_logits(model: PreTrainedModel, batch: Tensor) -> Tensor:
    """Scores ``[B, classes]`` for a batch of :class:`LabelledBatches`."""
    ids = batch[:, 1:]
    mask = ids != PADDING
    padding = getattr(model.config, "pad_token_id", None)
    filled = torch.where(mask, ids, 0 if padding is None else padding)
    logits: Tensor = model(input_ids=filled, attention_mask=mask.long()).logits
    return logits


@torch.no_grad()
def accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Labelled,
    *,
    length: int = 256,
    batch_size: int = 64,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> float:
    """Share of texts that a classifier gets right; `model` is in evaluation mode.

    Args:
        model: the classifier.
        tokenizer: its tokenizer.
        data: the texts.
        length: most tokens of a text.
        batch_size: texts at a time, of similar length.
        autocast: under which the model runs.
    """
    source = LabelledBatches.of(data, tokenizer, length=length, batch_size=batch_size, epochs=1, seed=0)
    order = sorted(range(len(data)), key=lambda place: len(source.rows[place]))
    right = 0
    for start in range(0, len(order), batch_size):
        batch = source.pack(order[start : start + batch_size]).to(model.device)
        with autocast():
            right += int((class_logits(model, batch).argmax(-1) == batch[:, 0]).sum())
    return right / len(data)


def loss_curve(path: Path, steps: int) -> tuple[tuple[int, float], ...]:
    """(step, mean loss since the point before) from a run's ``metrics.jsonl``."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    width = max(1, -(-steps // CURVE))
    groups = [rows[start : start + width] for start in range(0, len(rows), width)]
    return tuple((int(group[-1]["step"]), sum(row["loss"] for row in group) / len(group)) for group in groups)
