"""Cost of one decoding step by context length, and of verifying several nodes at once, on any session."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lineahead.runtime.session import Session, StepInput

PREFILL_CHUNK = 256


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Times of one kind of step.

    Attributes:
        context: tokens committed when the measurement began.
        nodes: nodes of each step.
        median_ms: middle of the samples.
        p10_ms: their tenth percentile.
        p90_ms: their ninetieth percentile.
        samples: how many steps were timed.
    """

    context: int
    nodes: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    samples: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def step_cost(context: int, nodes: int, seconds: Sequence[float]) -> StepCost:
    """Summarise samples."""
    low, middle, high = (float(x) * 1e3 for x in np.percentile(np.asarray(seconds), (10, 50, 90)))
    return StepCost(
        context=context, nodes=nodes, median_ms=middle, p10_ms=low, p90_ms=high, samples=len(seconds)
    )


class Walk:
    """One text being read by a session: chains of nodes, accepted up to a count."""

    def __init__(self, session: Session, tokens: Sequence[int]) -> None:
        """Start at the beginning of `tokens`, which repeat when they run out."""
        self._session, self._tokens, self._at = session, np.asarray(tokens, np.int64), 0
        self._accept = 0
        session.reset(1)

    @property
    def position(self) -> int:
        """Tokens read and accepted so far."""
        return self._at

    def step(self, nodes: int, accept: int) -> float:
        """Feed a chain of `nodes` tokens, of which `accept` will count; returns the seconds it took."""
        ids = self._tokens[np.arange(self._at, self._at + nodes) % len(self._tokens)]
        inputs = StepInput(
            input_ids=ids[None],
            ancestors=np.tri(nodes, dtype=np.bool_)[None],
            output_index=np.arange(nodes, dtype=np.int64)[None] if nodes <= 64 else np.array([[nodes - 1]]),
            accept_index=np.arange(self._accept, dtype=np.int64)[None],
            accept_count=np.array([self._accept], np.int64),
        )
        start = time.perf_counter()
        self._session.step(inputs)
        seconds = time.perf_counter() - start
        self._at, self._accept = self._at + accept, accept
        return seconds

    def read_to(self, position: int) -> float:
        """Prefill until `position`; returns the seconds it took."""
        seconds = 0.0
        chunk = min(PREFILL_CHUNK, self._session.chunk)
        while self._at < position:
            count = min(chunk, position - self._at)
            seconds += self.step(count, count)
        return seconds


def decode_cost(
    session: Session,
    tokens: Sequence[int],
    contexts: Sequence[int],
    *,
    samples: int = 32,
    progress: Callable[[str], None] = lambda message: None,
) -> tuple[list[StepCost], float]:
    """Time plain decoding (one node, accepted) after each of `contexts` tokens.

    Returns:
        The costs in order of context, and the prefill rate over all chunks in tokens per second.
    """
    walk, costs, prefilled, seconds = Walk(session, tokens), [], 0, 0.0
    for context in sorted(contexts):
        progress(f"reading {context} tokens")
        before = walk.position
        seconds += walk.read_to(context)
        prefilled += walk.position - before
        walk.step(1, 1)  # commits the chunk
        costs.append(step_cost(context, 1, [walk.step(1, 1) for _ in range(samples)]))
    return costs, prefilled / seconds if seconds else 0.0


def verify_cost(
    session: Session, tokens: Sequence[int], widths: Sequence[int], *, context: int = 1024, samples: int = 16
) -> list[StepCost]:
    """Time verification of chains of each width, one node accepted, interleaved to share the noise."""
    walk = Walk(session, tokens)
    walk.read_to(context)
    times: dict[int, list[float]] = {width: [] for width in widths}
    for _ in range(samples + 2):
        for width in widths:
            times[width].append(walk.step(width, 1))
    return [step_cost(context, width, seconds[2:]) for width, seconds in times.items()]
