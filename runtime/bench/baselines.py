"""Other ways of decoding the original checkpoint on the same machine, each in a process of its own."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lineahead.errors import BackendError, InputError
from lineahead.runtime.bench.context import StepCost, step_cost


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What a baseline measured.

    Attributes:
        name: program and precision, e.g. ``transformers fp32``.
        version: of the program.
        costs: cost of a plain decoding step by context.
    """

    name: str
    version: str
    costs: list[StepCost]


def _run(module: str, checkpoint: str, request: dict[str, object], threads: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "request.json"
        path.write_text(json.dumps(request))
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TRANSFORMERS_VERBOSITY": "error"}
        done = subprocess.run(
            [sys.executable, "-m", module, checkpoint, str(path)],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise BackendError(
            f"baseline {module.rpartition('.')[2]} failed: {last}", hint="Leave the baseline out."
        )
    result: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def _measure(
    name: str,
    module: str,
    checkpoint: str,
    tokens: Sequence[int],
    contexts: Sequence[int],
    samples: int,
    threads: int,
) -> Baseline:
    request = {"tokens": list(tokens), "contexts": sorted(contexts), "samples": samples, "threads": threads}
    result = _run(f"lineahead.runtime.bench.{module}", checkpoint, request, threads)
    seconds = result["seconds"]
    assert isinstance(seconds, list)
    costs = [step_cost(context, 1, times) for context, times in zip(sorted(contexts), seconds, strict=True)]
    return Baseline(name=name, version=str(result["version"]), costs=costs)


def require_checkpoint(reference: str) -> None:
    """Refuse at once what transformers cannot load by itself; anything else is its own to find.

    Raises:
        InputError: for GGUF files.
    """
    if reference.startswith("package:") or reference.endswith(".gguf"):
        raise InputError(
            f"{reference}: transformers does not load this by itself",
            hint="Give a Hub id or a checkpoint folder.",
        )


def transformers_fp32(
    checkpoint: str, tokens: Sequence[int], contexts: Sequence[int], *, samples: int = 24, threads: int = 2
) -> Baseline:
    """``transformers.generate`` on the softmax checkpoint in float32.

    Args:
        checkpoint: directory or Hub id of the original.
        tokens: prompt text; repeats when a context is longer.
        contexts: prompt lengths.
        samples: tokens timed at each.
        threads: for torch.

    Raises:
        BackendError: when the process fails.
    """
    return _measure(
        "transformers fp32", "transformers_process", checkpoint, tokens, contexts, samples, threads
    )


def transformers_texts(
    checkpoint: str, prompts: Sequence[Sequence[int]], tokens: int, *, threads: int = 2
) -> list[list[int]]:
    """What ``transformers.generate`` writes greedily on the softmax checkpoint in float32, prompt by prompt.

    Args:
        checkpoint: directory or Hub id of the original.
        prompts: token lists.
        tokens: written for each; the end of the text does not stop it.
        threads: for torch.

    Raises:
        BackendError: when the process fails.
    """
    request = {"prompts": [list(one) for one in prompts], "tokens": tokens, "threads": threads}
    found = _run("lineahead.runtime.bench.original_process", checkpoint, request, threads)["texts"]
    assert isinstance(found, list)
    return found


def llama_cpp(
    gguf: str, tokens: Sequence[int], contexts: Sequence[int], *, samples: int = 24, threads: int = 2
) -> Baseline:
    """llama.cpp through the ``xllamacpp`` package on a GGUF file, as it is quantised there.

    Args:
        gguf: the file.
        tokens: prompt text; repeats when a context is longer.
        contexts: prompt lengths.
        samples: tokens timed at each.
        threads: for llama.cpp.

    Raises:
        BackendError: when the package is not installed or fails.
    """
    return _measure("llama.cpp", "llama_cpp_process", gguf, tokens, contexts, samples, threads)
