"""Baseline, run as its own process: llama.cpp (the ``xllamacpp`` package) on a GGUF file, by context length.

``python -m lineahead.runtime.bench.llama_cpp_process FILE.gguf REQUEST.json`` prints one JSON object.
"""

import json
import sys
from pathlib import Path

ROUNDS = 3


def main() -> None:
    """Read the request ``{tokens, contexts, samples, threads}`` and print ``{model, version, seconds}``."""
    import xllamacpp

    path, request = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    parameters = xllamacpp.CommonParams()
    parameters.model.path = path
    parameters.n_parallel = 1
    parameters.n_ctx = max(request["contexts"]) + ROUNDS * request["samples"] + 64
    parameters.cpuparams.n_threads = request["threads"]
    parameters.cpuparams_batch.n_threads = request["threads"]
    parameters.warmup = True
    server = xllamacpp.Server(parameters)
    tokens, seconds = request["tokens"], []
    for context in request["contexts"]:
        prompt = [tokens[i % len(tokens)] for i in range(context)]
        times = []
        for _ in range(ROUNDS):  # from the second on the prompt is cached and only decoding is left
            answer = server.handle_completions(
                {
                    "prompt": prompt,
                    "n_predict": request["samples"],
                    "temperature": 0,
                    "ignore_eos": True,
                    "cache_prompt": True,
                }
            )
            answer = json.loads(answer) if isinstance(answer, (str, bytes)) else answer
            times.append(answer["timings"]["predicted_per_token_ms"] / 1e3)
        seconds.append(times)
    print(json.dumps({"model": Path(path).name, "version": xllamacpp.__version__, "seconds": seconds}))


if __name__ == "__main__":
    main()
