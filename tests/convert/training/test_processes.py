"""Two processes that share every step, or the weights too, are one process that accumulates two parts."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from lineahead.convert.pipeline import Options, convert_checkpoint, finetune
from lineahead.convert.training.progress import Silent
from lineahead.convert.training.sharding import shard_blocks
from lineahead.errors import TrainingError
from lineahead.recipes.manifest import read_manifest

LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
TRANSFER = {"kind": "transfer", "steps": 3}
ADAPTERS = {"kind": "distill", "steps": 4, "kl": 0.5, "ce": 1.0, "base_learning_rate": 1e-3}
FULL = {**ADAPTERS, "trainable": "full", "gradient_checkpointing": True}
FSDP = {  # what `accelerate launch --use_fsdp --fsdp_version 2` sets
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_SHARDING_STRATEGY": "FULL_SHARD",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_SYNC_MODULE_STATES": "true",
}


PROGRAM = """
import os, signal, sys
import logging
from pathlib import Path
from lineahead.convert.pipeline import Options, finetune
from lineahead.errors import InterruptedTrainingError
from lineahead.recipes.load import load_recipe

logging.basicConfig(level=logging.INFO)
artifact, recipe, stop = sys.argv[1:]

def on_step(step):
    if step == int(stop) and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)

try:
    finetune(Path(artifact), load_recipe(recipe), Options(device="cpu", resume=True, on_step=on_step))
except InterruptedTrainingError as error:
    logging.info("%s", error)
"""


@pytest.fixture
def launched(tmp_path, fork):
    """Fine-tune an artifact in two processes, the second told to stop after a step; returns their log."""

    def launch(artifact, recipe, environment, stop=0, by_torchrun=False):
        file, script = tmp_path / "recipe.yaml", tmp_path / "program.py"
        file.write_text(json.dumps(recipe.model_dump(mode="json", exclude_unset=True)))
        arguments = [str(artifact), str(file), str(stop)]
        if not by_torchrun:
            done = fork(PROGRAM, *arguments, processes=2, environment=environment)
            assert done.exits == [0, 0], done.written[-3000:]
            return done.written
        script.write_text(PROGRAM)
        done = subprocess.run(
            [sys.executable, *LAUNCH, str(script), *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stderr

    return launch


def losses(folder, name="loss"):
    lines = (folder / "training_metrics.jsonl").read_text().splitlines()
    return [json.loads(line)[name] for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stages", "environment"),
    [
        pytest.param((TRANSFER, ADAPTERS), {}, id="whole"),
        pytest.param((TRANSFER, ADAPTERS), FSDP, id="fsdp"),
        pytest.param((TRANSFER, FULL), FSDP, id="fsdp-full"),
    ],
)
def test_two_processes_give_the_losses_and_weights_of_one(
    source, recipe, weights, tmp_path, one_thread, launched, stages, environment
):
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    for folder in (alone, shared):
        convert_checkpoint(source, folder, recipe())
    parts = [{**stage, "grad_accumulation": 2} for stage in stages]
    finetune(alone, recipe(*parts), Options(device="cpu", progress=Silent()))
    log = launched(shared, recipe(*stages), environment, by_torchrun=not environment)
    assert ("2 blocks sharded: 7744 of their 15488 numbers are here" in log) == bool(environment)
    assert len(losses(alone)) == 7
    assert losses(shared) == pytest.approx(losses(alone), rel=1e-5)
    assert losses(shared, "grad_norm") == pytest.approx(losses(alone, "grad_norm"), rel=1e-3)
    one, other = (read_manifest(folder).training for folder in (alone, shared))
    assert [stage.tokens for stage in one] == [stage.tokens for stage in other] == [3 * 4 * 32, 4 * 4 * 32]
    for name, value in weights(alone).items():
        torch.testing.assert_close(weights(shared)[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_sharded_run_goes_on_where_it_was_stopped(source, recipe, weights, tmp_path, one_thread, launched):
    through, stopped = tmp_path / "through", tmp_path / "stopped"
    for folder in (through, stopped):
        convert_checkpoint(source, folder, recipe())
    launched(through, recipe(FULL), FSDP)
    assert "interrupted at step 2 of 4" in launched(stopped, recipe(FULL), FSDP, stop=1)
    launched(stopped, recipe(FULL), FSDP)
    assert losses(stopped) == losses(through)
    for name, value in weights(through).items():
        assert torch.equal(weights(stopped)[name], value), name


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("FSDP_VERSION", "1", "version 1 is not supported"),
        ("FSDP_OFFLOAD_PARAMS", "true", "weights on the CPU"),
    ],
)
def test_what_fsdp_cannot_do_here_is_refused(monkeypatch, tiny_linear_llama, variable, value, message):
    for name, given in {**FSDP, variable: value}.items():
        monkeypatch.setenv(name, given)
    accelerator = SimpleNamespace(num_processes=2, device=torch.device("cpu"), state=SimpleNamespace())
    with pytest.raises(TrainingError, match=message):
        shard_blocks(tiny_linear_llama, accelerator)
