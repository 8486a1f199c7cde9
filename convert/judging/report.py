"""One page of what the manifest knows about an artifact's quality: Markdown, JSON and plots."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lineahead.convert.checkpoint import read_config
from lineahead.convert.pipeline import cache_row_bytes
from lineahead.errors import InputError, needs_package
from lineahead.plugins.augmented_attention.huggingface.layers import LinearLayer
from lineahead.recipes.files import replacing, write_text
from lineahead.recipes.manifest import Manifest, Model

FOLDER = "report"
_CONTEXTS = (1024, 4096, 8192, 32768)


def write_report(artifact: Path, manifest: Manifest) -> Path:
    """Write ``report/report.md``, ``report.json`` and a plot per kind of test into the artifact folder.

    Args:
        artifact: the artifact folder.
        manifest: its manifest.

    Returns:
        The Markdown file.

    Raises:
        InputError: when nothing was measured yet, or without matplotlib.
        StorageError: when a file cannot be written.
    """
    if not (manifest.evaluations or manifest.recalls or manifest.agreements or manifest.tasks):
        raise InputError("nothing was measured yet", hint="Run `lineahead eval` on some text first.")
    folder = artifact / FOLDER
    folder.mkdir(exist_ok=True)
    plots = _plots(folder, manifest)
    cache = original_bytes_per_token(artifact, manifest.model)
    states = [(n, state_at(manifest.model, n), cache * n) for n in _CONTEXTS]
    measured = manifest.model_dump(
        mode="json", include={"evaluations", "recalls", "agreements", "tasks", "base"}
    )
    rows = [{"context": n, "student": ours, "teacher": theirs} for n, ours, theirs in states]
    write_text(folder / "report.json", json.dumps({**measured, "state_bytes": rows}, indent=2) + "\n")
    page = folder / "report.md"
    write_text(page, _markdown(manifest, states, plots))
    return page


def state_at(model: Model, context: int) -> int:
    """Bytes of one sequence's decoding state after `context` tokens, in float32."""
    return model.state_bytes + model.bytes_per_token * context


def original_bytes_per_token(artifact: Path, model: Model) -> int:
    """By how much the original's KV cache grows with every token, in float32, windows not counted."""
    layers = [LinearLayer.from_dict(one) for one in read_config(artifact)["lineahead"]["layers"]]
    return model.bytes_per_token + sum(cache_row_bytes(one.shape) for one in layers)


def _markdown(manifest: Manifest, states: Sequence[tuple[int, int, int]], plots: Sequence[Path]) -> str:
    kept = len(manifest.model.softmax_layers)
    lines = [
        f"# {Path(manifest.base.reference).name}, converted",
        "",
        f"{len(manifest.model.linear_layers)} layers linear, {kept} softmax. Teacher: the original.",
    ]
    for title, table in (
        ("Perplexity", _perplexity(manifest)),
        ("Recall: share of questions answered", _recall(manifest)),
        ("Agreement with the teacher's next token", _agreement(manifest)),
        ("Tasks (lm-eval)", _tasks(manifest)),
        ("Decoding state, MB per sequence in float32", _states(states)),
    ):
        if len(table) > 2:
            lines += ["", f"## {title}", "", *table]
    lines += ["", *(f"![{path.stem}]({path.name})" for path in plots)]
    return "\n".join(lines).rstrip() + "\n"


def _row(*cells: Any) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    return [_row(*heads), "|" + "---|" * len(heads), *(_row(*row) for row in rows)]


def _perplexity(manifest: Manifest) -> list[str]:
    heads = ("text", "context", "tokens", "teacher", "student", "ratio", "bits per byte, teacher", "student")
    rows = []
    for one in manifest.evaluations:
        ours, theirs = one.perplexity["student"], one.perplexity.get("teacher")
        bits = one.bits_per_byte
        rows.append(
            (
                one.file,
                one.context,
                one.tokens,
                "" if theirs is None else f"{theirs:.2f}",
                f"{ours:.2f}",
                "" if theirs is None else f"{ours / theirs:.3f}",
                f"{bits['teacher']:.3f}" if "teacher" in bits else "",
                f"{bits['student']:.3f}",
            )
        )
    return _table(heads, rows)


def _recall(manifest: Manifest) -> list[str]:
    heads = ("test", "context", "questions", "teacher", "student")
    rows = [
        (one.test, one.context, one.cases, f"{one.accuracy['teacher']:.2f}", f"{one.accuracy['student']:.2f}")
        for one in manifest.recalls
    ]
    return _table(heads, rows)


def _agreement(manifest: Manifest) -> list[str]:
    heads = ("text", "context", "tokens", "same likeliest token", "KL, nats")
    rows = [
        (one.file, one.context, one.tokens, f"{one.top1:.3f}", f"{one.kl:.3f}") for one in manifest.agreements
    ]
    return _table(heads, rows)


def _tasks(manifest: Manifest) -> list[str]:
    heads = ("task", "metric", "examples", "teacher", "student")
    rows = [
        (one.task, one.metric, one.cases, f"{one.value['teacher']:.4f}", f"{one.value['student']:.4f}")
        for one in manifest.tasks
    ]
    return _table(heads, rows)


def _states(states: Sequence[tuple[int, int, int]]) -> list[str]:
    rows = [(f"{n:,}", f"{theirs / 1e6:.1f}", f"{ours / 1e6:.1f}") for n, ours, theirs in states]
    return _table(("context", "teacher", "student"), rows)


def _plots(folder: Path, manifest: Manifest) -> list[Path]:
    """A curve over context for every kind of test that was run at two lengths or more."""
    ratios: dict[str, list[tuple[int, float]]] = {}
    for one in manifest.evaluations:
        if "teacher" in one.perplexity:
            ratio = one.perplexity["student"] / one.perplexity["teacher"]
            ratios.setdefault(one.file, []).append((one.context, ratio))
    recalls: dict[str, list[tuple[int, float]]] = {}
    for test in manifest.recalls:
        for name, share in test.accuracy.items():
            recalls.setdefault(f"{test.test}, {name}", []).append((test.context, share))
    agreed: dict[str, list[tuple[int, float]]] = {}
    for text in manifest.agreements:
        agreed.setdefault(text.file, []).append((text.context, text.top1))
    wanted = (
        ("perplexity", "perplexity, student over teacher", ratios),
        ("recall", "share of questions answered", recalls),
        ("agreement", "share of equal likeliest tokens", agreed),
    )
    return [
        _draw(folder / f"{name}.png", label, curves)
        for name, label, curves in wanted
        if any(len(points) > 1 for points in curves.values())
    ]


def _draw(path: Path, label: str, curves: dict[str, list[tuple[int, float]]]) -> Path:
    with needs_package("plots need matplotlib", 'Run `pip install "lineahead[study]"`.', InputError):
        from matplotlib.figure import Figure
    figure = Figure(figsize=(7.5, 4.2), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    for name, points in curves.items():
        style = "--" if name.endswith("teacher") else "-"
        axes.plot(*zip(*sorted(points), strict=True), style, marker="o", ms=4, lw=1.4, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("tokens of context")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    held = io.BytesIO()
    figure.savefig(held, format="png", metadata={"Software": None})
    with replacing(path) as temporary:
        temporary.write_bytes(held.getvalue())
    return path
