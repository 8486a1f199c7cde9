"""Baseline, run as its own process: ``transformers.generate`` on a checkpoint, by context length.

``python -m lineahead.runtime.bench.transformers_process CHECKPOINT REQUEST.json`` prints one JSON object.
"""

import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any


class _Clock:
    """A streamer that notes when each token arrives."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        """Called by generate with the prompt, then with every token."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Called once at the end."""


def token_seconds(model: Any, prompt: Any, count: int) -> list[float]:
    """Seconds of each of `count` greedy tokens of ``generate``; prefill and first token are left out.

    Args:
        model: of transformers.
        prompt: token ids ``[1, T]`` on the model's device.
        count: tokens that are timed.
    """
    clock = _Clock()
    model.generate(
        prompt,
        attention_mask=prompt.new_ones(prompt.shape),
        max_new_tokens=count + 2,
        min_new_tokens=count + 2,
        do_sample=False,
        streamer=clock,
    )
    arrivals = clock.times[2:]  # the prompt, then the prefill's token
    return [after - before for before, after in itertools.pairwise(arrivals)]


def main() -> None:
    """Read the request ``{tokens, contexts, samples, threads}`` and print ``{model, costs}``."""
    import torch
    import transformers

    checkpoint, request = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    torch.set_num_threads(request["threads"])
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokens, costs = torch.tensor(request["tokens"]), []
    for context in request["contexts"]:
        prompt = tokens[torch.arange(context) % len(tokens)][None]
        costs.append(token_seconds(model, prompt, request["samples"]))
    print(json.dumps({"model": type(model).__name__, "version": transformers.__version__, "seconds": costs}))


if __name__ == "__main__":
    main()
