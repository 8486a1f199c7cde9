"""The closing table of ``lineahead demo``: quality, speed and memory, each beside the teacher's."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lineahead.recipes.manifest import Manifest, read_manifest
from lineahead.runtime.bench.speculation import speculation
from lineahead.runtime.drafters import Drafter, LookupDrafter
from lineahead.runtime.generate import Generator, open_drafter
from lineahead.runtime.sampling import SamplingParams

QUESTIONS = (
    "Why is the sky blue?",
    "Write a short story about a lighthouse keeper who finds a map.",
    "List five ways to save water at home, and repeat the list at the end.",
)
OPENINGS = ("Once upon a time", "The little dog", "One day, a girl named Lily found a")
CONTEXTS = (1024, 32768)
TEACHER, STUDENT = "teacher (softmax)", "student (linear)"
Row = dict[str, Any]


def table(
    folder: Path,
    *,
    precisions: Sequence[str] = ("fp32", "int4"),
    tokens: int = 128,
    draft_nodes: int = 5,
    threads: int = 0,
    progress: Callable[[str], None] = lambda message: None,
) -> list[Row]:
    """Measure decoding on a few prompts and put the manifest's perplexities and state sizes beside.

    Args:
        folder: artifact with a draft and exported graphs.
        precisions: exported graphs to measure.
        tokens: generated for each prompt.
        draft_nodes: most tokens proposed per step.
        threads: of the backend; 0 lets it choose.
        progress: called with a line before each part.

    Raises:
        ArtifactError: when a graph is missing.
    """
    manifest = read_manifest(folder)
    rows = [
        {
            "": f"perplexity, {one.file} at {one.context}",
            TEACHER: one.perplexity.get("teacher"),
            STUDENT: one.perplexity.get("student"),
        }
        for one in manifest.evaluations
    ]
    for precision in precisions:
        progress(f"{precision}: loading")
        generator = Generator.load(folder, precision=precision, threads=threads)
        rows += _speeds(generator, precision, tokens, draft_nodes, progress)
    return rows + _state_rows(folder, manifest)


def answer(folder: Path, *, precision: str = "int4", tokens: int = 160) -> Iterator[str]:
    """Stream the first prompt and its answer, decoded with the heads where there are any."""
    generator = Generator.load(folder, precision=precision)
    chat = generator.tokenizer.template is not None
    drafter = open_drafter(generator.artifact, "auto", nodes=5)
    yield (QUESTIONS if chat else OPENINGS)[0] + ("\n\n" if chat else "")
    params = SamplingParams(max_tokens=tokens)
    for event in generator.stream(prompts(generator)[:1], params, drafter=drafter):
        yield event.text


def prompts(generator: Generator) -> list[list[int]]:
    """A few questions for a chat model, openings of stories for any other."""
    if generator.tokenizer.template is None:
        return [generator.encode(text) for text in OPENINGS]
    return [generator.chat([{"role": "user", "content": text}]) for text in QUESTIONS]


def kv_cache_bytes(layers: Sequence[Row], context: int) -> int:
    """Bytes of the float32 KV cache at `context` tokens of layers listed as in ``config.json``."""
    shapes = [layer["shape"] for layer in layers]
    return 4 * context * sum(int(one["kv_heads"] * (one["head_dim"] + one["value_dim"])) for one in shapes)


def _state_rows(folder: Path, manifest: Manifest) -> list[Row]:
    layers = json.loads((folder / "config.json").read_text(encoding="utf-8"))["lineahead"]["layers"]
    return [
        {
            "": f"decoding state, bytes at {context // 1024}K tokens",
            TEACHER: kv_cache_bytes(layers, context)
            + sum(one.state_bytes + one.bytes_per_token * context for one in manifest.model.softmax_layers),
            STUDENT: manifest.model.state_bytes + manifest.model.bytes_per_token * context,
        }
        for context in CONTEXTS
    ]


def _speeds(
    generator: Generator,
    precision: str,
    tokens: int,
    draft_nodes: int,
    progress: Callable[[str], None],
) -> list[Row]:
    drafters: dict[str, Drafter] = {"lookup": LookupDrafter(max_nodes=draft_nodes)}
    if (kind := generator.artifact.draft_kind) is not None:
        drafters[kind] = open_drafter(generator.artifact, kind, nodes=draft_nodes)
        drafters["auto"] = open_drafter(generator.artifact, "auto", nodes=draft_nodes)
    plain, found = speculation(
        generator,
        prompts(generator),
        drafters,
        SamplingParams(max_tokens=tokens),
        progress=lambda message: progress(f"{precision}: {message}"),
    )
    rows: list[Row] = [{"": f"tokens/s, {precision}, plain", STUDENT: plain}]
    for one in found:
        rows.append({"": f"tokens/s, {precision}, {one.drafter}", STUDENT: one.tok_per_s})
        rows.append({"": f"tokens per step, {precision}, {one.drafter}", STUDENT: one.tokens_per_step})
    return rows
