"""Fine-tuning of an artifact: the recipe's stages in order, each written into it when it is done."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from lineahead.convert.checkpoint import (
    load_artifact,
    load_model,
    load_tokenizer,
    read_config,
    save_artifact,
)
from lineahead.convert.drafts.self_data import sample_tokens
from lineahead.convert.training.compiled import compile_parts
from lineahead.convert.training.data import Tokens, load_tokens, save_tokens, text_tokens
from lineahead.convert.training.devices import accelerate_on
from lineahead.convert.training.distill import DistillTrainer
from lineahead.convert.training.loop import Run, Trainer, resume_position, train
from lineahead.convert.training.packed import batches_of
from lineahead.convert.training.progress import Progress, Silent, stderr_progress
from lineahead.convert.training.sharding import shard_blocks, whole
from lineahead.convert.training.transfer import TransferTrainer
from lineahead.convert.training.weights import (
    Resolved,
    freeze,
    is_new,
    narrow_products,
    require_trainable,
    resolve_precision,
)
from lineahead.convert.training.workspace import Workspace, open_workspace
from lineahead.errors import RecipeError, TrainingError
from lineahead.plugins.augmented_attention.huggingface.modeling import layers_of
from lineahead.recipes.kind import kind_of, require_decoder
from lineahead.recipes.manifest import Manifest, Training, read_manifest
from lineahead.recipes.schema import DistillStage, Recipe, Stage

logger = logging.getLogger(__name__)
METRICS_FILE = "training_metrics.jsonl"
LoadTeacher = Callable[[Manifest], PreTrainedModel]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What does not belong in a recipe.

    Attributes:
        resume: go on with an unfinished run.
        device: ``cpu`` or ``cuda``; what accelerate finds when None.
        progress: where to report; a bar or lines on stderr when None.
        on_step: called after every optimiser step.
    """

    resume: bool = False
    device: str | None = None
    progress: Progress | None = None
    on_step: Callable[[int], None] = field(default=lambda step: None)


def finetune(
    artifact: Path, recipe: Recipe, options: Options | None = None, *, load_teacher: LoadTeacher | None = None
) -> Manifest:
    """Run the recipe's training stages on an artifact and rewrite it after each.

    Exports, draft heads and evaluations belong to the old weights; the rewritten artifact is without them.

    Args:
        artifact: the artifact folder; replaced as a whole after each stage.
        recipe: with at least one stage.
        options: see :class:`Options`.
        load_teacher: loads the softmax teacher (linearized or not), needed once the pretrained weights have
            been trained.

    Returns:
        The new manifest.

    Raises:
        RecipeError: when there is nothing to do, no text to do it with, or a stage with nothing to train.
        ArtifactError: for what needs a decoder; an encoder has the transfer stage.
        TrainingError: when training fails, is interrupted (progress is saved), or cannot resume.
    """
    options = options or Options()
    if not recipe.stages:
        raise RecipeError(f"recipe {recipe.name!r} has no stages", hint="Add stages, or skip fine-tuning.")
    if recipe.data.source is None:
        raise RecipeError(
            f"recipe {recipe.name!r} names no training text",
            hint="Give data.files=[...], data.dataset, or data.samples={} for the teacher's own text.",
        )
    _require_learner(artifact, recipe)
    require_trainable(recipe.stages, read_manifest(artifact).model.new_parameters)
    accelerator = accelerate_on(options.device)
    main = accelerator.is_main_process
    job = _Job(
        artifact=artifact,
        recipe=recipe,
        options=options,
        accelerator=accelerator,
        progress=(options.progress or stderr_progress()) if main else Silent(),
        workspace=_open(artifact, recipe, options, accelerator),
        load_teacher=load_teacher,
    )
    tokens = _tokens(job)
    for index in range(len(recipe.stages)):
        done = [record for record in read_manifest(artifact).training if record.run == job.workspace.run]
        if index >= len(done):
            _run_stage(job, index, tokens)
    if main:
        job.workspace.finish()
        shutil.copyfile(job.workspace.metrics, artifact / METRICS_FILE)
    accelerator.wait_for_everyone()
    return read_manifest(artifact)


def _require_learner(artifact: Path, recipe: Recipe) -> None:
    """Refuse what needs a decoder: anything but the transfer stages of an encoder, on text that is there."""
    kinds = {stage.kind for stage in recipe.stages}
    if kind_of(read_config(artifact)) != "encoder" or kinds != {"transfer"}:
        require_decoder(artifact, f"fine-tuning by {' and '.join(sorted(kinds))}")
    elif recipe.data.samples is not None:
        require_decoder(artifact, "training on its own text (data.samples)")


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What all stages of one call share."""

    artifact: Path
    recipe: Recipe
    options: Options
    accelerator: Accelerator
    progress: Progress
    workspace: Workspace
    load_teacher: LoadTeacher | None

    def seed(self, stage: Stage) -> int:
        return self.recipe.seed if stage.seed is None else stage.seed


@dataclass(frozen=True, kw_only=True)
class _Trained:
    """What a stage did to the weights: new values, and additions."""

    updates: dict[str, Tensor]
    changes: dict[str, Tensor]
    record: Training


def _open(artifact: Path, recipe: Recipe, options: Options, accelerator: Accelerator) -> Workspace:
    """The workspace; the main process makes it, the others find it."""
    if accelerator.is_main_process:
        found = open_workspace(artifact, recipe, resume=options.resume)
    accelerator.wait_for_everyone()
    return found if accelerator.is_main_process else open_workspace(artifact, recipe, resume=True)


def _tokens(job: _Job) -> Tokens:
    """The training tokens, made once and kept in the workspace."""
    path = job.workspace.tokens
    if job.accelerator.is_main_process and not path.is_file():
        save_tokens(path, _make_tokens(job))
    job.accelerator.wait_for_everyone()
    return load_tokens(path)


def _make_tokens(job: _Job) -> Tokens:
    data, seed = job.recipe.data, job.recipe.seed
    if data.samples is None:
        processes = job.accelerator.num_processes
        count = sum(_stage_tokens(stage, processes) for stage in job.recipe.stages)
        return text_tokens(data, load_tokenizer(job.artifact), count, seed)
    model = _teacher(job) or load_model(job.artifact)
    freeze(model, resolve_precision(job.recipe.precision, job.accelerator.device))
    return sample_tokens(
        model.to(job.accelerator.device),
        load_tokenizer(job.artifact),
        data.samples,
        seed=seed,
        folder=job.workspace.samples,
        progress=job.progress,
        softmax=True,
    )


def _stage_tokens(stage: Stage, processes: int) -> int:
    per_step = stage.sequence_length * stage.batch_size * stage.grad_accumulation * processes
    return stage.tokens if stage.tokens is not None else per_step * (stage.steps or 0)


def _teacher(job: _Job) -> PreTrainedModel | None:
    """A separate teacher, if the artifact's pretrained weights are no longer the original ones."""
    manifest = read_manifest(job.artifact)
    if manifest.base_weights == "original":
        return None
    if job.load_teacher is None:
        raise TrainingError(
            f"{job.artifact}: its pretrained weights have been trained, so it cannot be its own teacher",
            hint="Name the original checkpoint with --teacher.",
        )
    logger.info("teacher: %s", manifest.base.reference)
    return job.load_teacher(manifest)


def _run_stage(job: _Job, index: int, tokens: Tokens) -> None:
    """Train one stage and write the artifact."""
    trained = _train_stage(job, index, tokens)
    if job.accelerator.is_main_process:
        _write(job, trained)
    job.accelerator.wait_for_everyone()


def _train_stage(job: _Job, index: int, tokens: Tokens) -> _Trained:
    stage, device, seed = job.recipe.stages[index], job.accelerator.device, job.seed(job.recipe.stages[index])
    precision = resolve_precision(job.recipe.precision, device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    torch.manual_seed(seed)
    model = load_model(job.artifact)
    freeze(model, precision)
    narrow = narrow_products(model, job.recipe.products, precision)
    shard_blocks(model, job.accelerator)
    trainer = _trainer(job, stage, model.to(device), precision, torch.bfloat16 if narrow else torch.float32)
    if job.recipe.compile:
        compile_parts(model)
    run = Run(
        stage=stage,
        index=index,
        trainer=trainer,
        batches=batches_of(
            job.recipe.data,
            tokens,
            stage,
            seed=seed + index,
            layers=layers_of(model.config),
            separator=load_tokenizer(job.artifact).eos_token_id,
        ),
        folder=job.workspace.folder,
        accelerator=job.accelerator,
        progress=job.progress,
        recipe=job.workspace.recipe,
        checkpoint_seconds=job.recipe.checkpoint_seconds,
        on_step=job.options.on_step,
    )
    train(run, resume_position(run))
    return _Trained(
        updates={name: whole(value).cpu() for name, value in run.trainer.updates().items()},
        changes={name: value.cpu() for name, value in run.trainer.changes().items()},
        record=Training(
            run=job.workspace.run,
            stage=index,
            kind=stage.kind,
            steps=run.steps,
            tokens=run.steps * run.tokens_per_step,
            seconds=round(run.seconds, 3),
            seed=seed,
            data=tokens.source,
            data_hash=tokens.digest,
            losses=run.metrics.final(index, run.steps),
            device=device.type,
            precision=precision,
        ),
    )


def _trainer(
    job: _Job, stage: Stage, model: PreTrainedModel, precision: Resolved, adapters: torch.dtype
) -> Trainer:
    if not isinstance(stage, DistillStage):
        if read_manifest(job.artifact).base_weights != "original":
            logger.warning(
                "the transfer stage's teacher is the trained model's softmax attention, not the original's"
            )
        return TransferTrainer(model, stage.learning_rate)
    other = _teacher(job) if stage.kl else None
    if other is None and stage.kl and stage.trainable == "full":
        other = load_model(job.artifact)
    if other is not None:
        freeze(other, precision)
        shard_blocks(other, job.accelerator)
        other.to(job.accelerator.device)
    return DistillTrainer(model, stage, other, adapters)


def _write(job: _Job, trained: _Trained) -> None:
    """Put the trained values into the artifact's weights, in those' precision, and replace the artifact."""
    model, tokenizer = load_artifact(job.artifact)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in trained.updates.items():
            parameters[name].copy_(value)
        for name, change in trained.changes.items():
            parameters[name].copy_(parameters[name].float() + change)
    manifest = read_manifest(job.artifact)
    changed = bool(trained.changes) or any(not is_new(name) for name in trained.updates)
    manifest = manifest.model_copy(
        update={
            "training": (*manifest.training, trained.record),
            "recipe": job.recipe.model_dump(mode="json"),
            "base_weights": "trained" if changed else manifest.base_weights,
            **dict.fromkeys(("evaluations", "recalls", "agreements", "tasks", "exports", "drafts"), ()),
        }
    )
    save_artifact(model, tokenizer, job.artifact, manifest=manifest)
