"""One cell: build the model, train it with its share of the budget, judge it. A killed cell goes on."""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lineahead.convert import classify
from lineahead.convert.evaluate import evaluate
from lineahead.convert.replace import linearize
from lineahead.convert.source import load_source
from lineahead.convert.study.grid import Cell
from lineahead.convert.study.material import training_tokens
from lineahead.convert.study.models import starting_point
from lineahead.convert.study.result import Result, thinned
from lineahead.convert.training.compiled import compile_parts, release_parts
from lineahead.convert.training.data import Tokens
from lineahead.convert.training.devices import accelerate_on
from lineahead.convert.training.distill import DistillTrainer
from lineahead.convert.training.labelled import read_labelled
from lineahead.convert.training.loop import Run, Trainer, resume_position, train
from lineahead.convert.training.packed import batches_of
from lineahead.convert.training.progress import Progress, Silent
from lineahead.convert.training.transfer import TransferTrainer
from lineahead.convert.training.weights import (
    freeze,
    narrow_products,
    new_parameters,
    resolve_precision,
)
from lineahead.errors import ArchitectureError, InterruptedTrainingError, LineaheadError, SettingsError
from lineahead.plugins.augmented_attention.huggingface.modeling import layers_of
from lineahead.recipes.manifest import tool_versions
from lineahead.recipes.schema import ClassifyStage, DistillStage, TransferStage
from lineahead.recipes.study.schema import LabelTask, Study, TextTask

logger = logging.getLogger(__name__)
VERSIONS = ("torch", "transformers")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all cells of one run share.

    Attributes:
        study: the study.
        folder: its folder.
        device: ``cpu`` or ``cuda``; what accelerate finds when None.
        progress: where training reports.
        on_step: called after every optimiser step; tests kill the run there.
    """

    study: Study
    folder: Path
    device: str | None = None
    progress: Progress = field(default_factory=Silent)
    on_step: Callable[[int], None] = field(default=lambda step: None)


def run_cell(cell: Cell, job: Job) -> Result:
    """Train and judge a cell, from its saved progress if there is any, which is removed at the end.

    A method that cannot serve the model, and training that breaks off, are results.

    Raises:
        InterruptedTrainingError: after a signal; the progress is saved.
    """
    blank = Result(cell=cell.name, digest=cell.digest, status="refused", versions=_versions())
    if cell.refused is not None:
        return blank.model_copy(update={"reason": cell.refused})
    work = job.folder / "work" / cell.name
    try:
        task = job.study.tasks[cell.task]
        found = _read_text(cell, job, work) if isinstance(task, TextTask) else _classify(cell, job, work)
        result = blank.model_copy(update={"status": "done", **found})
    except InterruptedTrainingError:
        raise
    except (ArchitectureError, SettingsError) as error:
        result = blank.model_copy(update={"reason": str(error)})
    except LineaheadError as error:
        result = blank.model_copy(update={"status": "failed", "reason": str(error)})
    except Exception as error:  # one broken cell must not cost the others their hours
        logger.exception("%s", cell.name)
        line = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        result = blank.model_copy(update={"status": "failed", "reason": line})
    shutil.rmtree(work, ignore_errors=True)
    return result


def _versions() -> dict[str, str]:
    from lineahead import __version__

    return {"lineahead": __version__, **{k: v for k, v in tool_versions().items() if k in VERSIONS}}


def _read_text(cell: Cell, job: Job, work: Path) -> dict[str, Any]:
    """Train a language model and measure its perplexity."""
    task, study = job.study.tasks[cell.task], job.study
    assert isinstance(task, TextTask)
    accelerator = accelerate_on(job.device)
    if accelerator.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    precision = resolve_precision(study.precision, accelerator.device)
    model, tokenizer = starting_point(
        cell.model, cell.origin, task, labels=0, seed=cell.seed, folder=job.folder / "made"
    )
    if cell.settings is not None:
        linearize(model, cell.settings)
    freeze(model, precision)
    narrow_products(model, study.products, precision)
    model.to(accelerator.device)
    runs = [
        _stage(cell, job, work / f"stage-{index}", index, model, tokenizer, accelerator)
        for index in _stages(cell, model)
    ]
    narrow_products(model, "fp32", precision)
    found = evaluate(
        model,
        tokenizer,
        [Path(name) for name in task.files.values()],
        names=("student",),
        context=[task.context, *task.longer],
        tokens=task.tokens,
    )
    rows = [_steps(run) for run in runs]
    points = [(float(row["tokens"]), float(row["loss"])) for row in (rows[-1] if rows else ())]
    return {
        "figures": {name: one.perplexity["student"] for name, one in zip(task.figures, found, strict=True)},
        "loss": runs[-1].metrics.final(runs[-1].index, runs[-1].steps)["loss"] if runs else None,
        "curve": thinned(points),
        "steps": sum(run.steps for run in runs),
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "seconds": round(sum(run.seconds for run in runs), 2),
        "tokens_per_s": round(median(row["tokens_per_s"] for row in rows[-1])) if rows else None,
        "device": device_name(accelerator.device),
        "precision": precision,
    }


def _stages(cell: Cell, model: PreTrainedModel) -> list[int]:
    """Numbers of the stages that a cell runs; only a method with parameters has something to transfer to."""
    every = range(len(cell.row.stages))
    if cell.settings is None and cell.origin.base is not None:
        return []
    if new_parameters(model):
        return list(every)
    return [index for index in every if not isinstance(cell.row.stages[index], TransferStage)]


def _stage(
    cell: Cell,
    job: Job,
    folder: Path,
    index: int,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Accelerator,
) -> Run:
    """Train one stage, or what is left of it."""
    stage = cell.row.stages[index]
    assert not isinstance(stage, ClassifyStage)
    tokens = _tokens(cell, job, tokenizer)
    task = job.study.tasks[cell.task]
    assert isinstance(task, TextTask)
    batches = batches_of(
        task.data,
        tokens,
        stage,
        seed=cell.seed + index,
        layers=layers_of(model.config) if cell.settings is not None else (),
        separator=tokenizer.eos_token_id,
    )
    run = Run(
        stage=stage,
        index=index,
        trainer=_trainer(cell, job, stage, model),
        batches=batches,
        folder=folder,
        accelerator=accelerator,
        progress=job.progress,
        recipe=cell.digest,
        checkpoint_seconds=job.study.checkpoint_seconds,
        on_step=job.on_step,
    )
    if job.study.compile and cell.settings is not None:
        compile_parts(model)
    try:
        train(run, resume_position(run))
    finally:
        release_parts(model)
    return run


def _tokens(cell: Cell, job: Job, tokenizer: PreTrainedTokenizerBase) -> Tokens:
    """The comparison's training tokens: as many as its longest stage reads."""
    task = job.study.tasks[cell.task]
    assert isinstance(task, TextTask)
    counts = [
        stage.tokens
        or (stage.steps or 0) * stage.sequence_length * stage.batch_size * stage.grad_accumulation
        for stage in cell.row.stages
    ]
    return training_tokens(task, tokenizer, max(counts), job.folder / "made", 0)


def _trainer(cell: Cell, job: Job, stage: TransferStage | DistillStage, model: PreTrainedModel) -> Trainer:
    if isinstance(stage, TransferStage):
        return TransferTrainer(model, stage.learning_rate)
    other, base = None, cell.origin.base
    if stage.kl and stage.trainable == "full" and base is not None:
        other = load_source(base).model.to(model.device)  # type: ignore[arg-type]
        freeze(other, resolve_precision(job.study.precision, model.device))
    narrow = job.study.products == "bf16" and any(x.dtype == torch.bfloat16 for x in model.parameters())
    return DistillTrainer(model, stage, other, torch.bfloat16 if narrow else torch.float32)


def _steps(run: Run) -> list[dict[str, Any]]:
    """The metrics of a stage's steps."""
    rows = [json.loads(line) for line in run.metrics.path.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["stage"] == run.index]


def _classify(cell: Cell, job: Job, work: Path) -> dict[str, Any]:
    """Train a classifier and measure its accuracy."""
    task, stage = job.study.tasks[cell.task], cell.row.stages[0]
    assert isinstance(task, LabelTask)
    assert isinstance(stage, ClassifyStage)
    train_data = read_labelled(Path(task.train))
    test_data = read_labelled(Path(task.test), train_data.names)
    model, tokenizer = starting_point(
        cell.model,
        cell.origin,
        task,
        labels=len(train_data.names),
        seed=cell.seed,
        folder=job.folder / "made",
    )
    if cell.settings is not None:
        linearize(model, cell.settings)
    found = classify.train_classifier(
        model,
        tokenizer,
        train_data,
        test_data,
        classify.Options(
            folder=work,
            stage=stage,
            resume=True,
            seed=cell.seed,
            device=job.device,
            checkpoint_seconds=job.study.checkpoint_seconds,
            progress=job.progress,
            on_step=job.on_step,
        ),
    )
    curve = [(float(step * stage.batch_size), loss) for step, loss in found.loss_curve]
    tail = curve[-max(1, len(curve) // 10) :]
    return {
        "figures": {"accuracy": 100 * found.accuracy, "majority": 100 * found.majority},
        "loss": sum(loss for _, loss in tail) / len(tail),
        "curve": thinned(curve),
        "steps": found.steps,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "seconds": found.seconds,
        "device": device_name(model.device),
        "precision": found.precision,
    }


def device_name(device: torch.device) -> str:
    """The GPU's own name, or ``cpu`` with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"
