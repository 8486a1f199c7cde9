"""Baseline, its own process on a GPU: a softmax model of transformers, static cache, one CUDA graph a step.

``python -m lineahead.runtime.bench.static_cache_process REQUEST.json`` prints one JSON object. The request is
``{"models": {"7B": {"hidden_size": 4096, ...}}, "calls": [["7B", batch, context], ...], "repeats": 20}``, and
``"prompts": [["7B", tokens], ...]`` for the time of reading a prompt in one call, and
``"generate": [["7B", context], ...]`` for that of a token of ``generate``, whose cache grows.
Weights are random, since only time is asked for; attention goes over the whole cache, as long as the context.
"""

import inspect
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from lineahead.runtime.bench.transformers_process import token_seconds

COPY_NUMBERS = 1 << 28
GENERATED = 24


def median_ms(torch: Any, work: Any, repeats: int) -> float:
    """Middle of `repeats` times between two events."""
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return float(statistics.median(times))


def copy_bandwidth(torch: Any) -> float:
    """Bytes a second that a copy on the device reads and writes."""
    source, target = (torch.ones(COPY_NUMBERS, dtype=torch.int32, device="cuda") for _ in range(2))
    return 8e3 * COPY_NUMBERS / median_ms(torch, lambda: target.copy_(source), 10)


def step_ms(torch: Any, model: Any, cache_type: Any, batch: int, context: int, repeats: int) -> float:
    """Milliseconds of a step of one token in each of `batch` sequences, replayed from a CUDA graph."""
    known = inspect.signature(cache_type.__init__).parameters
    sizes = {"max_batch_size": batch, "device": "cuda", "dtype": model.dtype}
    given = {name: value for name, value in sizes.items() if name in known}
    cache = cache_type(config=model.config, max_cache_len=context, **given)
    tokens = torch.randint(model.config.vocab_size, (batch, 1), device="cuda")
    place = torch.full((1,), context // 2, device="cuda")

    def step() -> Any:
        return model(
            tokens,
            past_key_values=cache,
            position_ids=place[None].expand(batch, 1),
            cache_position=place,
            use_cache=True,
        ).logits

    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.stream(stream):
        for _ in range(3):
            step()
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            step()
    graph.replay()
    torch.cuda.synchronize()
    return median_ms(torch, graph.replay, repeats)


def prompt_ms(torch: Any, model: Any, tokens: int, repeats: int) -> float:
    """Milliseconds of reading `tokens` tokens in one call, no cache kept, logits of the last."""
    ids = torch.randint(model.config.vocab_size, (1, tokens), device="cuda")

    def read() -> Any:
        return model(ids, use_cache=False, logits_to_keep=1).logits

    with torch.no_grad():
        read()
        torch.cuda.synchronize()
        return median_ms(torch, read, repeats)


def main() -> None:
    """Read the request and print ``{device, torch, transformers, copy_bytes_per_second, calls}``."""
    import torch
    import transformers

    request: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    bandwidth = copy_bandwidth(torch)
    torch.cuda.empty_cache()
    torch.set_default_dtype(torch.bfloat16)
    found = []
    for name, shape in request["models"].items():
        with torch.device("cuda"):
            model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape)).eval()
        weights = sum(one.numel() * one.element_size() for one in model.parameters())
        if not model.config.tie_word_embeddings:  # a step reads one row of the input embedding
            weights -= model.get_input_embeddings().weight.numel() * 2
        for which, batch, context in request["calls"]:
            if which != name:
                continue
            one: dict[str, Any] = {"model": name, "batch": batch, "context": context, "weight_bytes": weights}
            try:
                one["ms"] = step_ms(
                    torch, model, transformers.StaticCache, batch, context, request["repeats"]
                )
            except torch.OutOfMemoryError:
                one["ms"] = None
            found.append(one)
            print(one, file=sys.stderr, flush=True)
            torch.cuda.empty_cache()
        for which, tokens in request.get("prompts", []):
            if which == name:
                found.append(
                    {"model": name, "prompt": tokens, "prompt_ms": prompt_ms(torch, model, tokens, 5)}
                )
                print(found[-1], file=sys.stderr, flush=True)
        for which, context in request.get("generate", []):
            if which == name:
                prompt = torch.randint(model.config.vocab_size, (1, context), device="cuda")
                seconds = token_seconds(model, prompt, GENERATED)
                found.append({"model": name, "generate": context, "ms": 1e3 * statistics.median(seconds)})
                print(found[-1], file=sys.stderr, flush=True)
        del model
        torch.cuda.empty_cache()
    print(
        json.dumps(
            {
                "device": torch.cuda.get_device_name(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "copy_bytes_per_second": bandwidth,
                "calls": found,
            }
        )
    )


if __name__ == "__main__":
    main()
