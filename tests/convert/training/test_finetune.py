"""Stages: what they train, what they leave alone, that losses fall, that a killed run is the same run."""

import json
import shutil
import signal

import pytest
import torch

from lineahead.convert.checkpoint import load_model
from lineahead.convert.pipeline import Options, convert_checkpoint, finetune
from lineahead.convert.training.progress import Silent
from lineahead.convert.training.workspace import workspace_of
from lineahead.errors import RecipeError, TrainingError
from lineahead.plugins.augmented_attention.huggingface.attention import teacher
from lineahead.recipes.manifest import read_manifest

TRANSFER = {"kind": "transfer", "steps": 12}
LORA = {"kind": "distill", "steps": 12, "learning_rate": 3e-3, "base_learning_rate": 3e-3}


class Killed(BaseException):
    """Not caught by anything, like a kill."""


def options(**changes):
    return Options(**{"device": "cpu", "progress": Silent(), **changes})


def losses(artifact):
    path = artifact / "training_metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def kill_at(number):
    calls = []

    def on_step(step):
        calls.append(step)
        if len(calls) == number:
            raise Killed

    return on_step


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_transfer_trains_only_what_is_new(artifact, recipe, weights):
    before = weights(artifact)
    manifest = finetune(artifact, recipe(TRANSFER), options())
    moved = changed(before, weights(artifact))
    assert moved
    assert all(".lineahead." in name for name in moved)
    assert manifest.base_weights == "original"
    rows = losses(artifact)
    assert rows[-1]["loss"] < 0.95 * rows[0]["loss"]
    (record,) = manifest.training
    assert record.tokens == 12 * 2 * 32
    assert record.losses["loss"] == pytest.approx(rows[-1]["loss"])
    assert not list(workspace_of(artifact).glob("checkpoint"))


def test_adapters_are_merged_and_the_teacher_stays_the_original(artifact, recipe, weights):
    before = weights(artifact)
    stage = {**LORA, "lora": {"r": 4, "targets": ["q_proj", "down_proj"]}}
    manifest = finetune(artifact, recipe(stage), options())
    moved = {name.split(".")[-2] for name in changed(before, weights(artifact)) if ".lineahead." not in name}
    assert moved == {"q_proj", "down_proj"}
    assert manifest.base_weights == "trained"
    rows = losses(artifact)
    assert rows[-1]["kl"] < rows[0]["kl"]


def test_merged_weights_are_what_was_trained(artifact, recipe):
    stage = {**LORA, "steps": 6, "learning_rate": 1e-9, "warmup": 0.0, "schedule": "constant"}
    finetune(artifact, recipe(stage), options())
    after = losses(artifact)
    again = recipe({**stage, "steps": 1, "base_learning_rate": 1e-9, "trainable": "new"})
    finetune(artifact, again, options())
    assert losses(artifact)[0]["ce"] == pytest.approx(after[0]["ce"], rel=0.2)
    assert losses(artifact)[0]["kl"] < after[0]["kl"]


def test_full_training_moves_the_weights(artifact, recipe, weights):
    before = weights(artifact)
    stage = {**LORA, "trainable": "full", "ce": 0.5, "base_learning_rate": 1e-3}
    finetune(artifact, recipe(stage), options())
    assert any("embed_tokens" in name for name in changed(before, weights(artifact)))
    rows = losses(artifact)
    assert rows[-1]["loss"] < rows[0]["loss"]


@pytest.mark.parametrize("first", [7, 12, 15, 24])  # amid a stage, at the ends of both, at a new one
def test_a_killed_run_gives_the_same_losses_and_weights(artifact, recipe, weights, tmp_path, first):
    recipe_ = recipe(TRANSFER, {**LORA, "lora": {"r": 2, "dropout": 0.1}}, checkpoint_seconds=1e-9)
    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy)
    finetune(copy, recipe_, options())
    with pytest.raises(Killed):
        finetune(artifact, recipe_, options(on_step=kill_at(first)))
    with pytest.raises(TrainingError, match="unfinished"):
        finetune(artifact, recipe_, options())
    finetune(artifact, recipe_, options(resume=True))
    for one, other in zip(losses(copy), losses(artifact), strict=True):
        for name in ("stage", "step", "loss", "grad_norm"):
            assert one[name] == other[name]
    assert not changed(weights(copy), weights(artifact))
    assert len(read_manifest(artifact).training) == 2


SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
from lineahead.convert.pipeline import Options, convert_checkpoint, finetune
from lineahead.errors import TrainingError
from lineahead.recipes.load import load_recipe
torch.set_num_threads(1)
artifact, recipe, number, at = Path(sys.argv[1]), load_recipe(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
def on_step(step):
    if step == at:
        os.kill(os.getpid(), number)
try:
    finetune(artifact, recipe, Options(device="cpu", on_step=on_step))
except TrainingError as error:
    print(error, file=sys.stderr)
    sys.exit(10)
"""


@pytest.fixture
def run_script(fork, tmp_path):
    """Train in a process that sends itself a signal at a step; how it ended, and what it wrote."""

    def run(artifact, recipe, number, at):
        path = tmp_path / "recipe.yaml"
        path.write_text(recipe.model_dump_json(), encoding="utf-8")
        done = fork(SCRIPT, artifact, path, int(number), at)
        return done.exits[0], done.written

    return run


def test_kill_minus_nine_then_resume(artifact, recipe, run_script):
    recipe_ = recipe({**TRANSFER, "steps": 8}, checkpoint_seconds=1e-9)
    assert run_script(artifact, recipe_, signal.SIGKILL, 5)[0] == -signal.SIGKILL
    finetune(artifact, recipe_, options(resume=True))
    rows = losses(artifact)
    assert [row["step"] for row in rows] == list(range(1, 9))


def test_interruption_saves_and_says_so_in_one_line(artifact, recipe, run_script):
    recipe_ = recipe({**TRANSFER, "steps": 8})
    code, written = run_script(artifact, recipe_, signal.SIGINT, 5)
    assert code == 10, written
    last = written.strip().splitlines()[-1]
    assert "interrupted at step" in last
    assert "progress is saved" in last
    state = json.loads((workspace_of(artifact) / "checkpoint" / "state.json").read_text(encoding="utf-8"))
    assert state["step"] >= 5
    finetune(artifact, recipe_, options(resume=True))
    assert len(losses(artifact)) == 8


def test_resume_needs_the_same_recipe(artifact, recipe):
    with pytest.raises(Killed):
        finetune(artifact, recipe(TRANSFER), options(on_step=kill_at(2)))
    with pytest.raises(TrainingError, match="another recipe"):
        finetune(artifact, recipe({**TRANSFER, "learning_rate": 1e-3}), options(resume=True))


def test_a_damaged_checkpoint_is_refused(artifact, recipe):
    recipe_ = recipe(TRANSFER, checkpoint_seconds=1e-9)
    with pytest.raises(Killed):
        finetune(artifact, recipe_, options(on_step=kill_at(4)))
    tensors = workspace_of(artifact) / "checkpoint" / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:100])
    with pytest.raises(TrainingError, match="damaged checkpoint"):
        finetune(artifact, recipe_, options(resume=True))


def test_a_loss_that_is_not_finite_names_stage_step_and_layer(artifact, recipe):
    stage = {**TRANSFER, "learning_rate": 1e30, "warmup": 0.0, "max_grad_norm": 0.0}
    with pytest.raises(TrainingError, match=r"stage 0 transfer, step \d+, layer model\.layers\.\d") as caught:
        finetune(artifact, recipe(stage), options())
    assert caught.value.hint


def test_nothing_to_do_or_nothing_to_do_it_with(artifact, recipe):
    with pytest.raises(RecipeError, match="no stages"):
        finetune(artifact, recipe(), options())
    with pytest.raises(RecipeError, match="no training text") as caught:
        finetune(artifact, recipe(TRANSFER, data={}), options())
    assert "data.files" in caught.value.hint
    assert not workspace_of(artifact).exists()


@pytest.mark.parametrize("method", ["flash-global", "relu", "performer", "rfa", "transnormer", "yoso"])
def test_a_stage_with_nothing_to_train_is_refused_first(source, recipe, tmp_path, method):
    artifact, section = tmp_path / "artifact", {"preset": method}
    before = convert_checkpoint(source, artifact, recipe(method=section))
    assert before.model.new_parameters == 0
    for stage in (TRANSFER, {**LORA, "trainable": "new"}):
        message = rf"stage 1 \({stage['kind']}\).*no parameters"
        with pytest.raises(RecipeError, match=message) as caught:
            finetune(artifact, recipe(LORA, stage, method=section), options())
        assert "distill" in caught.value.hint
    assert read_manifest(artifact) == before
    assert not workspace_of(artifact).exists()


def test_recomputed_activations_change_nothing_but_memory(artifact, recipe, monkeypatch):
    from transformers.models.llama.modeling_llama import LlamaMLP

    calls, found = [], []
    forward = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: (calls.append(1), forward(self, x))[1])
    for recomputed in (False, True):
        calls.clear()
        stage = {**LORA, "steps": 2, "trainable": "new", "gradient_checkpointing": recomputed}
        monkeypatch.setattr("lineahead.convert.finetune._write", lambda job, trained: None)
        manifest = finetune(artifact, recipe(stage), options())
        assert not manifest.training
        found.append((len(calls), losses(artifact)))
    assert found[1][0] - found[0][0] == 2 * 2
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


def test_accumulated_batches_equal_a_large_one(artifact, recipe, weights, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy)
    common = {**LORA, "steps": 3, "trainable": "new"}
    finetune(artifact, recipe({**common, "batch_size": 4}), options())
    finetune(copy, recipe({**common, "batch_size": 2, "grad_accumulation": 2}), options())
    for name, value in weights(artifact).items():
        assert torch.allclose(value, weights(copy)[name], atol=2e-5), name


def test_the_teacher_writes_its_own_text(artifact, recipe):
    data = {"samples": {"tokens": 256, "sequence_length": 32, "batch_size": 4}}
    first = finetune(artifact, recipe({**TRANSFER, "steps": 2}, data=data), options())
    second = finetune(artifact, recipe({**TRANSFER, "steps": 2}, data=data), options())
    assert first.training[-1].data_hash == second.training[-1].data_hash
    assert "samples" in first.training[-1].data


def test_a_second_run_after_merging_loads_the_teacher_again(artifact, recipe, source):
    finetune(artifact, recipe(LORA), options())
    model = load_model(artifact)
    ids = torch.arange(2, 22)[None]
    with torch.no_grad(), teacher():
        moved = model(input_ids=ids, use_cache=False).logits
    original = type(model).softmax_class.from_pretrained(source)
    assert not torch.allclose(moved, original(input_ids=ids).logits, atol=1e-3)
    manifest = finetune(artifact, recipe({**LORA, "steps": 2}), options())
    assert len(manifest.training) == 2


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor:UserWarning"
)  # torch.compile asks every input
@pytest.mark.parametrize("trainable", ["lora", "full"])
def test_a_compiled_run_learns_what_an_eager_run_learns(artifact, recipe, weights, tmp_path, trainable):
    """The parts that are compiled round otherwise; nothing else may differ, the teacher's mode included."""
    stage = {"kind": "distill", "steps": 3, "kl": 1.0, "ce": 0.5, "trainable": trainable}
    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy)
    finetune(artifact, recipe(stage), options())
    finetune(copy, recipe(stage, compile=True), options())
    eager, compiled = weights(artifact), weights(copy)
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=1e-5)
    assert [row["loss"] for row in losses(copy)] == pytest.approx(
        [row["loss"] for row in losses(artifact)], rel=1e-4
    )


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor:UserWarning"
)  # torch.compile asks every input
@pytest.mark.parametrize("compiled", [False, True])
def test_bfloat16_products_and_adapters_learn_alike(artifact, recipe, weights, tmp_path, captured, compiled):
    """Adapters are updated in float32: a step of 1e-4 is below half a bfloat16 digit of most of them."""
    stages = {**TRANSFER, "steps": 3}, {**LORA, "steps": 6, "lora": {"r": 4}, "base_learning_rate": 1e-4}
    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy)
    before = weights(artifact)
    finetune(artifact, recipe(*stages, precision="bf16"), options())
    finetune(copy, recipe(*stages, precision="bf16", products="bf16", compile=compiled), options())
    wide, narrow = losses(artifact), losses(copy)
    assert [row["loss"] for row in narrow] == pytest.approx([row["loss"] for row in wide], rel=0.01)
    assert [row["loss"] for row in narrow] != [row["loss"] for row in wide]
    one, other = weights(artifact), weights(copy)
    for name in (name for name in changed(before, one) if ".lineahead." not in name):
        moved, found = one[name] - before[name], other[name] - before[name]
        assert (found - moved).norm() < 0.2 * moved.norm(), name


def test_a_killed_run_of_bfloat16_adapters_is_the_same_run(artifact, recipe, weights, tmp_path):
    recipe_ = recipe(LORA, precision="bf16", products="bf16", checkpoint_seconds=1e-9)
    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy)
    finetune(copy, recipe_, options())
    with pytest.raises(Killed):
        finetune(artifact, recipe_, options(on_step=kill_at(7)))
    finetune(artifact, recipe_, options(resume=True))
    assert not changed(weights(copy), weights(artifact))
