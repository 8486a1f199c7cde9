"""The whole benchmark of one artifact, and what its ratios are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lineahead.errors import InputError
from lineahead.runtime.artifact import read_artifact
from lineahead.runtime.backends.ort_library import Provider, share_threads
from lineahead.runtime.bench.baselines import Baseline, llama_cpp, require_checkpoint, transformers_fp32
from lineahead.runtime.bench.context import decode_cost, verify_cost
from lineahead.runtime.bench.machine import TENSORRT, engine_machine, graph_bytes, machine
from lineahead.runtime.bench.prompts import read_prompts
from lineahead.runtime.bench.speculation import speculation
from lineahead.runtime.drafters import Drafter, LookupDrafter
from lineahead.runtime.generate import Generator, open_drafter
from lineahead.runtime.sampling import SamplingParams

CONTEXTS = (256, 1024, 4096, 7936)
WIDTHS = (1, 2, 3, 5, 9, 17)


@dataclass(frozen=True, kw_only=True)
class BenchRequest:
    """What to measure.

    Attributes:
        contexts: tokens before the timed steps; when empty, those of CONTEXTS that fit the positions.
        ignore_position_limit: time contexts past the length that the model's positions were made for.
        precisions: exported graphs, or engines, to measure.
        backend: ``onnxruntime`` or ``tensorrt``.
        provider: ``cpu`` or ``cuda``, of ONNX Runtime.
        threads: threads of every program measured.
        text: tokens are read from this text; the prompts, when None.
        prompts: file of prompts for speculation: lines, or JSON lines with ``prompt``, ``text`` or ``turns``.
        prompt_count: how many of them.
        tokens: tokens generated for each.
        temperature: 0 is greedy.
        drafters: ``lookup``, ``auto``, and ``KIND chain`` or ``KIND tree``; kinds that the artifact lacks are
            left out.
        draft_nodes: most nodes proposed.
        draft_model: artifact that drafts as well; none when None.
        draft_precision: of its graph.
        governed: also run each drafter under the governor.
        baseline: checkpoint for ``transformers.generate``; none when None.
        gguf: file for llama.cpp; none when None.
        samples: timed steps per point.
    """

    contexts: tuple[int, ...] = ()
    ignore_position_limit: bool = False
    precisions: tuple[str, ...] = ("fp32",)
    backend: str = "onnxruntime"
    provider: Provider = "cpu"
    threads: int = 2
    text: Path | None = None
    prompts: Path | None = None
    prompt_count: int = 10
    tokens: int = 128
    temperature: float = 0.0
    drafters: tuple[str, ...] = (
        "lookup",
        "medusa chain",
        "medusa tree",
        "recurrent chain",
        "recurrent tree",
        "auto",
    )
    draft_nodes: int = 5
    draft_model: Path | None = None
    draft_precision: str = "int4"
    governed: bool = False
    baseline: str | None = None
    gguf: str | None = None
    samples: int = 32


@dataclass
class BenchReport:
    """What was measured.

    Attributes:
        machine: processor, threads, measured read bandwidth; of a GPU, its name and what a copy there moves.
        decode: by precision: implementation, weight bytes, cost by context, prefill rate, achieved GB/s.
        verify: by precision: cost of verifying several nodes.
        speculation: by precision: plain rate and every drafter.
        baselines: other programs on the original checkpoint.
        ratios: derived from the above, by name.
    """

    machine: dict[str, Any] = field(default_factory=dict)
    decode: dict[str, Any] = field(default_factory=dict)
    verify: dict[str, Any] = field(default_factory=dict)
    speculation: dict[str, Any] = field(default_factory=dict)
    baselines: list[dict[str, Any]] = field(default_factory=list)
    ratios: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dict(vars(self))


def bench(
    folder: Path, request: BenchRequest, *, progress: Callable[[str], None] = lambda message: None
) -> BenchReport:
    """Measure one artifact on one backend, and the baselines beside it, in one run.

    Args:
        folder: artifact with exported graphs.
        request: what to measure.
        progress: called with a line before each part.

    Raises:
        ArtifactError: when a graph is missing.
        BackendError: when a baseline fails, or the backend is not usable here.
        InputError: when the prompts cannot be read, a context is beyond the model's positions, or the
            baseline is a GGUF file.
    """
    read_artifact(folder).require_decoder("bench")
    if request.baseline:
        require_checkpoint(request.baseline)
    if request.draft_model is not None:
        share_threads(request.threads)
    gpu = request.backend == TENSORRT or request.provider == "cuda"
    report = BenchReport(machine=machine(request.threads, gpu=gpu))
    tokens: list[int] = []
    for precision in request.precisions:
        progress(f"{precision}: loading")
        generator = Generator.load(
            folder,
            backend=request.backend,
            precision=precision,
            provider=request.provider,
            threads=request.threads,
        )
        limit = generator.position_limit(ignore=request.ignore_position_limit)
        request = replace(request, contexts=chosen_contexts(limit, request))
        tokens = tokens or _text(generator, request)
        report.decode[precision] = _decode(generator, folder, precision, tokens, request, progress)
        fitting = [width for width in WIDTHS if width <= generator.session.chunk]
        widths = verify_cost(generator.session, tokens, fitting, context=min(1024, max(request.contexts)))
        report.verify[precision] = [cost.as_dict() for cost in widths]
        if request.prompts is not None:
            report.speculation[precision] = _speculation(generator, request, progress)
    for found in _baselines(tokens, request, progress):
        costs = [cost.as_dict() for cost in found.costs]
        report.baselines.append({"name": found.name, "version": found.version, "costs": costs})
    report.ratios = ratios(report)
    return report


def chosen_contexts(limit: int | None, request: BenchRequest) -> tuple[int, ...]:
    """The contexts to time when the model's positions end at `limit` (None: nowhere).

    Raises:
        InputError: when one of the request's is beyond it.
    """
    room = None if limit is None else limit - request.samples - max(WIDTHS)
    if not request.contexts:
        return tuple(one for one in CONTEXTS if room is None or one <= room) or (max(1, room or 1),)
    beyond = [one for one in request.contexts if room is not None and one > room]
    if beyond:
        raise InputError(
            f"context {beyond[0]} and {request.samples} steps: the model's positions end at {limit}",
            hint="Choose a shorter --context, or pass --ignore-position-limit.",
        )
    return request.contexts


def _text(generator: Generator, request: BenchRequest) -> list[int]:
    if request.text is not None:
        if not request.text.is_file():
            raise InputError(f"{request.text}: no such file", hint="Give --text a text file.")
        return generator.encode(request.text.read_text(encoding="utf-8")[: 8 * max(request.contexts)])
    if request.prompts is not None:
        return generator.encode("\n\n".join(read_prompts(request.prompts, 1000))[: 8 * max(request.contexts)])
    return [token % generator.artifact.vocab_size for token in range(3, 2051)]


def _decode(
    generator: Generator,
    folder: Path,
    precision: str,
    tokens: Sequence[int],
    request: BenchRequest,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    costs, prefill = decode_cost(
        generator.session,
        tokens,
        request.contexts,
        samples=request.samples,
        progress=lambda message: progress(f"{precision}: {message}"),
    )
    weights = graph_bytes(read_artifact(folder), precision, engine_machine(request.backend))
    fastest = min(cost.median_ms for cost in costs)
    return {
        "implementation": generator.session.info.implementation,
        "graph_bytes": weights,
        "state_bytes": sum(part.nbytes for part in generator.session.read_state().values()),
        "costs": [cost.as_dict() for cost in costs],
        "prefill_tok_per_s": prefill,
        "achieved_gb_s": weights / fastest / 1e6,
    }


def _speculation(
    generator: Generator, request: BenchRequest, progress: Callable[[str], None]
) -> dict[str, Any]:
    assert request.prompts is not None
    texts = read_prompts(request.prompts, request.prompt_count)
    chat = generator.tokenizer.template is not None
    prompts = [
        generator.chat([{"role": "user", "content": text}]) if chat else generator.encode(text)
        for text in texts
    ]
    params = SamplingParams(temperature=request.temperature, max_tokens=request.tokens)
    drafters = _drafters(generator, request)
    found = []
    for governed in (False, True) if request.governed else (False,):
        plain, entries = speculation(
            generator, prompts, drafters, params, governed=governed, progress=progress
        )
        found += [entry.as_dict() for entry in entries]
    return {"plain_tok_per_s": plain, "prompts": len(prompts), "drafters": found}


def _drafters(generator: Generator, request: BenchRequest) -> dict[str, Drafter]:
    made: dict[str, Drafter] = {}
    for name in request.drafters:
        kind, _, shape = name.partition(" ")
        if kind == "lookup":
            made[f"lookup {request.draft_nodes}"] = LookupDrafter(max_nodes=request.draft_nodes)
        elif kind == "auto" or kind == generator.artifact.draft_kind:
            made[f"{name} {request.draft_nodes}"] = open_drafter(
                generator.artifact,
                kind,
                nodes=request.draft_nodes,
                shape="chain" if shape == "chain" else "adaptive",
                provider=request.provider,
                session=None if shape == "tree" else generator.session,
            )
    if request.draft_model is not None:
        made[f"model {request.draft_nodes}"] = open_drafter(
            generator.artifact,
            "model",
            nodes=request.draft_nodes,
            threads=request.threads,
            model=request.draft_model,
            precision=request.draft_precision,
            provider=request.provider,
        )
    return made


def _baselines(
    tokens: Sequence[int], request: BenchRequest, progress: Callable[[str], None]
) -> list[Baseline]:
    found = []
    if request.baseline:
        progress("baseline: transformers")
        found.append(transformers_fp32(request.baseline, tokens, request.contexts, threads=request.threads))
    if request.gguf:
        progress("baseline: llama.cpp")
        found.append(llama_cpp(request.gguf, tokens, request.contexts, threads=request.threads))
    return found


def ratios(report: BenchReport) -> dict[str, float]:
    """Every ratio that the report's numbers give; "A over B" is B's time divided by A's."""
    found: dict[str, float] = {}
    by_context = {
        precision: {cost["context"]: cost["median_ms"] for cost in part["costs"]}
        for precision, part in report.decode.items()
    }
    for precision, costs in by_context.items():
        contexts = sorted(costs)
        found[f"{precision}: ms at {contexts[-1]} / ms at {contexts[0]}"] = (
            costs[contexts[-1]] / costs[contexts[0]]
        )
        for baseline in report.baselines:
            for cost in baseline["costs"]:
                if cost["context"] in costs:
                    name = f"{precision} over {baseline['name']} at {cost['context']}"
                    found[name] = cost["median_ms"] / costs[cost["context"]]
        for other, values in by_context.items():
            if other == "fp32" and precision != "fp32":
                middle = contexts[len(contexts) // 2]
                found[f"{precision} over fp32 at {middle}"] = values[middle] / costs[middle]
    for precision, part in report.speculation.items():
        for entry in part["drafters"]:
            label = f"{precision}: {entry['drafter']}{' governed' if entry['governed'] else ''} over plain"
            found[label] = entry["speedup"]
    return found
