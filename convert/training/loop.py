"""The training loop of every stage: schedule, accumulation, clipping, checkpoints, interruption, metrics."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from lineahead.convert.training import checkpoint
from lineahead.convert.training.data import BatchSource
from lineahead.convert.training.interrupt import Interrupt
from lineahead.convert.training.progress import Metrics, Progress
from lineahead.convert.training.sharding import is_sharded, whole
from lineahead.errors import InterruptedTrainingError, TrainingError
from lineahead.recipes.schema import ClassifyStage, Stage

logger = logging.getLogger(__name__)


class Trainer(Protocol):
    """What a stage does with one batch."""

    def parameters(self) -> dict[str, tuple[nn.Parameter, float]]:
        """What is trained, by name, with each parameter's peak learning rate."""

    def backward(self, batch: Tensor, share: float) -> dict[str, float]:
        """Add the gradients of `share` times the batch's loss; return the losses by name, with ``loss``.

        Args:
            batch: what the batch source gave, ``[B, N]``, on the training device.
            share: one over the accumulated batches.
        """

    def after_step(self) -> None:
        """The optimiser has changed the parameters."""

    def updates(self) -> dict[str, Tensor]:
        """New values of the model's parameters, by name."""

    def changes(self) -> dict[str, Tensor]:
        """What is to be added to the model's other parameters, by name."""

    def culprit(self) -> str:
        """The layer whose loss or gradient is not finite, in words."""


@dataclass(kw_only=True)
class Run:
    """One stage on its way.

    Attributes:
        stage: the stage's section of the recipe.
        index: its number.
        trainer: what it does with a batch.
        batches: its data.
        folder: where checkpoints and metrics go.
        accelerator: device and processes.
        progress: where it reports.
        recipe: digest of the recipe.
        checkpoint_seconds: how often it saves.
        on_step: called after every optimiser step with the step's number; tests kill the run there.
    """

    stage: Stage | ClassifyStage
    index: int
    trainer: Trainer
    batches: BatchSource
    folder: Path
    accelerator: Accelerator
    progress: Progress
    recipe: str
    checkpoint_seconds: float
    on_step: Callable[[int], None] = field(default=lambda step: None)

    def __post_init__(self) -> None:
        stage, processes = self.stage, self.accelerator.num_processes
        self.steps = self.batches.steps(stage.tokens, stage.steps, stage.grad_accumulation, processes)
        self.tokens_per_step = (
            self.batches.sequence_length * self.batches.batch_size * stage.grad_accumulation * processes
        )
        self.parameters = {name: parameter for name, (parameter, _) in self.trainer.parameters().items()}
        self.step, self.seconds = 0, 0.0
        self.losses: list[dict[str, float]] = []
        self.metrics = Metrics(self.folder / "metrics.jsonl")

    @property
    def checkpoint_folder(self) -> Path:
        """Where the stage's checkpoint is."""
        return self.folder / "checkpoint"

    def position(self) -> checkpoint.Position:
        """Where the run stands."""
        return checkpoint.Position(
            recipe=self.recipe,
            data=self.batches.digest,
            stage=self.index,
            step=self.step,
            seconds=self.seconds,
            processes=self.accelerator.num_processes,
        )


def resume_position(run: Run) -> checkpoint.Position | None:
    """The position to resume from, if the run's checkpoint is of its stage.

    Raises:
        TrainingError: when it was made under other conditions.
    """
    found = checkpoint.position_of(run.checkpoint_folder)
    if found is None or found.stage != run.index:
        return None
    now = run.position()
    for what in ("recipe", "data", "processes"):
        if getattr(found, what) != getattr(now, what):
            raise TrainingError(
                f"{run.checkpoint_folder}: made with other {what}: {getattr(found, what)}",
                hint=f"Resume with the same {what}, or delete {run.folder} to start over.",
            )
    return found


def train(run: Run, resume: checkpoint.Position | None = None) -> None:
    """Train until the stage's last step, from the checkpoint when `resume` is its position.

    Raises:
        TrainingError: on a loss that is not finite.
        InterruptedTrainingError: after a signal, with the progress saved.
    """
    optimizer = _optimizer(run)
    if resume is not None:
        checkpoint.load(run.checkpoint_folder, run.parameters, optimizer)
        run.step, run.seconds = resume.step, resume.seconds
        run.trainer.after_step()
    if run.accelerator.is_main_process:
        run.metrics.rewind(run.index, run.step)
    label = f"stage {run.index} {run.stage.kind}"
    run.progress.start(label, (run.steps - run.step) * run.tokens_per_step)
    saved = time.monotonic()
    try:
        with Interrupt() as interrupt:
            while run.step < run.steps:
                due = time.monotonic() - saved >= run.checkpoint_seconds
                stop, due = _one_step(run, optimizer, interrupt, due)
                if stop:
                    _save(run, optimizer)
                    raise InterruptedTrainingError(
                        f"interrupted at step {run.step} of {run.steps} of {label}; progress is saved",
                        hint="Continue with --resume.",
                    )
                if due:
                    _save(run, optimizer)
                    saved = time.monotonic()
                run.on_step(run.step)
            _save(run, optimizer)
    finally:
        run.progress.finish()


def _optimizer(run: Run) -> torch.optim.Optimizer:
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter, rate in run.trainer.parameters().values():
        groups.setdefault((rate, is_sharded(parameter)), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": parameters, "lr": rate, "peak": rate} for (rate, _), parameters in groups.items()],
        betas=(0.9, 0.95),
        weight_decay=run.stage.weight_decay,
        fused=True,
    )


def _one_step(
    run: Run, optimizer: torch.optim.Optimizer, interrupt: Interrupt, due: bool
) -> tuple[bool, bool]:
    """One optimiser step; returns whether to stop after it and whether to save, all processes the same."""
    start = time.monotonic()
    stage, accelerator = run.stage, run.accelerator
    factor = rate_factor(run.step, run.steps, stage.warmup, stage.schedule)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    optimizer.zero_grad(set_to_none=True)
    total: dict[str, float] = {}
    for part in range(stage.grad_accumulation):
        number = (
            run.step * stage.grad_accumulation + part
        ) * accelerator.num_processes + accelerator.process_index
        batch = run.batches.batch(number).to(accelerator.device, non_blocking=True)
        for name, value in run.trainer.backward(batch, 1 / stage.grad_accumulation).items():
            total[name] = total.get(name, 0.0) + value / stage.grad_accumulation
    stop, due = _share(run, total, (interrupt.requested, due))
    norm = _clip(run)
    if not (math.isfinite(total["loss"]) and math.isfinite(norm)):
        raise TrainingError(
            f"stage {run.index} {stage.kind}, step {run.step}, {run.trainer.culprit()}: loss is not finite",
            hint="Lower the learning rate, or resume from the last checkpoint with other settings.",
        )
    optimizer.step()
    run.trainer.after_step()
    run.step += 1
    elapsed = time.monotonic() - start
    run.seconds += elapsed
    run.losses.append(total)
    run.progress.advance(run.tokens_per_step, total)
    if accelerator.is_main_process:
        run.metrics.write(
            {
                "stage": run.index,
                "step": run.step,
                "tokens": run.step * run.tokens_per_step,
                **total,
                "grad_norm": norm,
                "rate_factor": factor,
                "tokens_per_s": run.tokens_per_step / elapsed,
            }
        )
    return stop, due


def rate_factor(step: int, steps: int, warmup: float, schedule: str) -> float:
    """Multiplier of the learning rate in step `step` (from 0): linear warm-up, then the schedule to zero."""
    rise = math.ceil(steps * warmup)
    if step < rise:
        return (step + 1) / rise
    done = (step - rise) / max(steps - rise, 1)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1 - done if schedule == "linear" else 1.0


def _share(run: Run, losses: dict[str, float], flags: tuple[bool, bool]) -> tuple[bool, bool]:
    """Average gradients and, in place, `losses` over processes, once per step; is a flag set in any of them?

    Gradients of sharded parameters are averages already.
    """
    if run.accelerator.num_processes == 1:
        return flags
    parameters = [p for p in run.parameters.values() if not is_sharded(p)]
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    numbers = torch.tensor([*map(float, flags), *losses.values()], device=run.accelerator.device)
    flat = run.accelerator.reduce(
        torch.cat([numbers, *(gradient.flatten() for gradient in gradients)]), "mean"
    )
    own = len(numbers)
    for parameter, part in zip(parameters, flat[own:].split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)
    losses.update(zip(losses, flat[len(flags) : own].tolist(), strict=True))
    return bool(flat[0] > 0), bool(flat[1] > 0)


def _clip(run: Run) -> float:
    """Clip gradients to the stage's norm; sharded and whole ones have one norm. Returns it."""
    limit = run.stage.max_grad_norm or math.inf
    kinds: list[list[nn.Parameter]] = [[], []]
    for parameter in run.parameters.values():
        if parameter.grad is not None:
            kinds[is_sharded(parameter)].append(parameter)
    norms = [whole(nn.utils.get_total_norm([p.grad for p in kind])) for kind in kinds if kind]  # type: ignore[misc]
    norm = torch.stack(norms).norm() if len(norms) > 1 else norms[0]
    for kind in kinds:
        if kind:
            nn.utils.clip_grads_with_norm_(kind, limit, norm)
    return float(norm)


def _save(run: Run, optimizer: torch.optim.Optimizer) -> None:
    main = run.accelerator.is_main_process
    checkpoint.save(run.checkpoint_folder, run.position(), run.parameters, optimizer, write=main)
