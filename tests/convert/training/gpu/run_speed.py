"""Training speed of a checkpoint made linear: adapters of rank 16, cross entropy, random tokens.

    python tests/convert/training/gpu/run_speed.py CHECKPOINT bf16-16x1024 fp32-4x4096 eager-fp32-16x1024

An item is ``[eager-]PRODUCTS-BATCHxLENGTH``; the median is of the second half of 16 steps.
"""

import copy
import json
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from lineahead.convert.replace import linearize
from lineahead.convert.source import load_source
from lineahead.convert.training.compiled import compile_parts
from lineahead.convert.training.data import Batches, Tokens
from lineahead.convert.training.devices import accelerate_on
from lineahead.convert.training.distill import DistillTrainer
from lineahead.convert.training.loop import Run, train
from lineahead.convert.training.progress import Silent
from lineahead.convert.training.weights import freeze, narrow_products
from lineahead.plugins.augmented_attention.methods import preset
from lineahead.recipes.schema import DistillStage

STEPS = 16


def measure(base, item, ids, accelerator, precision):
    """One item's row."""
    *eager, products, shape = item.split("-")
    rows, length = map(int, shape.split("x"))
    cuda = accelerator.device.type == "cuda"
    model = copy.deepcopy(base)
    narrow = narrow_products(model, products, precision)
    model.to(accelerator.device)
    stage = DistillStage(
        kind="distill", steps=STEPS, sequence_length=length, batch_size=rows, learning_rate=1e-3,
        base_learning_rate=1e-3, trainable="lora", lora={"r": 16, "alpha": 32, "targets": "all-linear"},
        kl=0.0, ce=1.0,
    )  # fmt: skip
    trainer = DistillTrainer(model, stage, None, torch.bfloat16 if narrow else torch.float32)
    if not eager:
        compile_parts(model)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    source = Batches(tokens=Tokens(ids=ids, source="random"), sequence_length=length, batch_size=rows, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(
            stage=stage, index=0, trainer=trainer, batches=source, folder=Path(folder),
            accelerator=accelerator, progress=Silent(), recipe="speed", checkpoint_seconds=1e9,
        )  # fmt: skip
        train(run)
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    seconds = [run.tokens_per_step / json.loads(line)["tokens_per_s"] for line in lines]
    middle = statistics.median(seconds[STEPS // 2 :])
    return {
        "item": item, "tokens_per_s": round(run.tokens_per_step / middle), "step_ms": round(1e3 * middle, 1),
        "fastest_ms": round(1e3 * min(seconds), 1), "first_step_s": round(seconds[0], 1),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 1) if cuda else None,
        "device": torch.cuda.get_device_name() if cuda else "cpu", "torch": torch.__version__,
    }  # fmt: skip


def main():
    """Every item named."""
    checkpoint, items = sys.argv[1], sys.argv[2:]
    accelerator = accelerate_on(None)
    cuda = accelerator.device.type == "cuda"
    precision = "bf16" if cuda else "fp32"
    torch.set_float32_matmul_precision("high")
    base = load_source(checkpoint).model
    linearize(base, preset("softmax-hedgehog"))
    freeze(base, precision)
    random = np.random.default_rng(0)
    ids = random.integers(100, base.config.vocab_size, 4_000_000 if cuda else 40_000).astype(np.int32)
    for item in items:
        print(json.dumps(measure(base, item, ids, accelerator, precision)), flush=True)


if __name__ == "__main__":
    main()
