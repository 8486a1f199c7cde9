"""Whether a draft engine says what its graph says in ONNX Runtime, and proposes what the export does."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lineahead.convert.tensorrt.check import scaled_error
from lineahead.convert.tensorrt.draft_graph import HINT, Draft, draft_graph
from lineahead.convert.tensorrt.graph import save_for_check
from lineahead.errors import BackendError, ParityError, needs_package
from lineahead.plugins.tensorrt.cuda import Device
from lineahead.plugins.tensorrt.draft import GUESS, HIDDEN, IDS, SCORES
from lineahead.plugins.tensorrt.engine import Engine
from lineahead.plugins.tensorrt.record import Bucket

ROWS = 64
# Of the best candidate. `onnx/draft.onnx` rounds weights and operands to 8 bits: the same bound as for that.
MIN_AGREEMENT = 0.8


def compare_draft(
    source: Path, draft: Draft, engine: Engine, device: Device, buckets: Sequence[Bucket], *, seed: int = 0
) -> tuple[float, float]:
    """Judge every profile by random hidden states and tokens.

    Args:
        source: ``onnx/draft.onnx``.
        draft: what is known of it.
        engine: to judge.
        device: where it runs.
        buckets: of its profiles.
        seed: of the rows.

    Returns:
        Largest scaled difference of guesses and scores from the graph in float32, and the share of rows whose
        best token is the one of `source`.

    Raises:
        BackendError: when ONNX Runtime is missing.
    """
    missing = "the draft engine is checked against ONNX Runtime, which is not installed"
    with needs_package(missing, 'Run `pip install "lineahead[cpu]"`.', BackendError):
        import onnxruntime
    providers = ["CPUExecutionProvider"]
    with tempfile.TemporaryDirectory() as folder:
        twin = Path(folder) / "draft.onnx"
        save_for_check(draft_graph(source, "fp32")[0], twin)
        wide = onnxruntime.InferenceSession(str(twin), providers=providers)
    exported = onnxruntime.InferenceSession(str(source), providers=providers)
    random, worst, same = np.random.default_rng(seed), 0.0, []
    width = int(engine.tensors[HIDDEN].shape[-1])
    for place, bucket in enumerate(buckets):
        run = _runner(engine, device, place, bucket.batch, width, len(draft.names))
        for _ in range(-(-ROWS // bucket.batch)):
            hidden = (random.normal(size=(bucket.batch, width)) * draft.scale).astype(np.float32)
            tokens = random.integers(0, draft.vocabulary, bucket.batch)
            guess, scores = run(hidden, tokens.astype(np.int32))
            expected = wide.run([GUESS, SCORES], {HIDDEN: hidden, IDS: tokens.astype(np.int32)})
            worst = max(worst, *map(scaled_error, expected, (guess, scores)))
            best = exported.run(["tokens"], {HIDDEN: hidden, IDS: tokens})[0][:, 0]
            same.append(draft.names[scores.argmax(-1)] == best)
    return worst, float(np.concatenate(same).mean())


def require_agreement(agreement: float, name: str) -> None:
    """Refuse an engine that proposes something else.

    Raises:
        ParityError: with the share that agrees.
    """
    if not agreement >= MIN_AGREEMENT:
        raise ParityError(f"{name}: only {agreement:.0%} of the best candidates are the draft's", hint=HINT)


def _runner(
    engine: Engine, device: Device, profile: int, batch: int, width: int, count: int
) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Runs one profile on buffers of its own."""
    shapes = {HIDDEN: (batch, width), IDS: (batch,)}
    sizes = {HIDDEN: batch * width, IDS: batch, GUESS: batch * width, SCORES: batch * count}
    addresses = {name: device.allocate(size * 4) for name, size in sizes.items()}
    enqueue = engine.prepare(profile, shapes, addresses)

    def run(hidden: Any, tokens: Any) -> tuple[Any, Any]:
        device.upload(addresses[HIDDEN], hidden)
        device.upload(addresses[IDS], tokens)
        enqueue()
        guess, scores = np.empty((batch, width), np.float32), np.empty((batch, count), np.float32)
        device.download(guess, addresses[GUESS])
        device.download(scores, addresses[SCORES])
        return guess, scores

    return run
