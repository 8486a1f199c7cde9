"""Two processes that share every step are one process that accumulates two parts."""

import json
import subprocess
import sys

import pytest
import torch

from lineahead.convert.pipeline import Options, convert_checkpoint, finetune
from lineahead.convert.training.progress import Silent

LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
STAGES = (
    {"kind": "transfer", "steps": 3},
    {"kind": "distill", "steps": 4, "kl": 0.5, "ce": 1.0, "base_learning_rate": 1e-3},
)


@pytest.mark.slow
def test_two_processes_give_the_losses_and_weights_of_one(source, recipe, weights, tmp_path, one_thread):
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    for folder in (alone, shared):
        convert_checkpoint(source, folder, recipe())
    parts = [{**stage, "grad_accumulation": 2} for stage in STAGES]
    finetune(alone, recipe(*parts), Options(device="cpu", progress=Silent()))

    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(recipe(*STAGES).model_dump(mode="json", exclude_unset=True)))
    program = tmp_path / "program.py"
    program.write_text("from lineahead.cli import main\n\nmain()\n")
    command = [
        sys.executable,
        *LAUNCH,
        str(program),
        "finetune",
        str(shared),
        "-c",
        str(file),
        "--device",
        "cpu",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]

    def losses(folder):
        lines = (folder / "training_metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    assert len(losses(alone)) == 7
    assert losses(shared) == pytest.approx(losses(alone), rel=1e-5)
    for name, value in weights(alone).items():
        torch.testing.assert_close(weights(shared)[name], value, rtol=1e-4, atol=1e-6)
