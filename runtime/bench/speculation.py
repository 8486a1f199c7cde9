"""Speculative against plain decoding: every drafter on the same prompts in the same run, losers too."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lineahead.runtime.drafters import Drafter, NoDrafter
from lineahead.runtime.generate import Generator
from lineahead.runtime.sampling import SamplingParams


@dataclass(frozen=True, kw_only=True)
class Speculation:
    """One drafter over all prompts.

    Attributes:
        drafter: its name and size, e.g. ``medusa tree 8``.
        governed: whether the governor chose the draft length.
        tok_per_s: decoded tokens per second, prefill apart.
        speedup: geometric mean over prompts of plain time per token over this one's.
        slowest: the smallest of those ratios.
        tokens_per_step: tokens per verification, bonus token included.
        accepted_per_step: without it.
        acceptance_rates: share of offers accepted at each depth.
        identical: whether every text equals plain decoding's, token for token (greedy only).
        time_s: where the time went.
    """

    drafter: str
    governed: bool
    tok_per_s: float
    speedup: float
    slowest: float
    tokens_per_step: float
    accepted_per_step: float
    acceptance_rates: list[float]
    identical: bool | None
    time_s: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass
class _Tally:
    prompts: int = 0
    seconds: float = 0.0
    log_ratio: float = 0.0
    slowest: float = math.inf
    row_steps: int = 0
    row_tokens: int = 0
    accepted: int = 0
    offered_at: tuple[int, ...] = ()
    accepted_at: tuple[int, ...] = ()
    identical: bool = True
    time_s: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)


def _padded_sum(left: Sequence[int], right: Sequence[int]) -> tuple[int, ...]:
    width = max(len(left), len(right))
    return tuple(sum(side[i] if i < len(side) else 0 for side in (left, right)) for i in range(width))


def speculation(
    generator: Generator,
    prompts: Sequence[Sequence[int]],
    drafters: Mapping[str, Drafter],
    params: SamplingParams,
    *,
    governed: bool = False,
    progress: Callable[[str], None] = lambda message: None,
) -> tuple[float, list[Speculation]]:
    """Decode each prompt plainly and with each drafter in turn, so that all share the machine's noise.

    Args:
        generator: a loaded model.
        prompts: token lists, decoded one at a time.
        drafters: by the name to report.
        params: the same for all.
        governed: let the governor choose the draft length.
        progress: called before each prompt.

    Returns:
        Tokens per second of plain decoding, and one entry per drafter.
    """
    tallies = {name: _Tally() for name in ("plain", *drafters)}
    for number, prompt in enumerate(prompts):
        progress(f"prompt {number + 1} of {len(prompts)}")
        plain_seconds = 0.0
        plain_tokens: tuple[int, ...] = ()
        for name, drafter in {"plain": NoDrafter(), **drafters}.items():
            result = generator.generate(
                [prompt], params, drafter=drafter, governed=governed and name != "plain"
            )[0]
            seen, tally = generator.statistics, tallies[name]
            if not seen.row_tokens:
                continue
            per_token = seen.decode_s / seen.row_tokens
            if name == "plain":
                plain_seconds, plain_tokens = per_token, result.tokens
            ratio = plain_seconds / per_token
            tally.prompts += 1
            tally.log_ratio += math.log(ratio)
            tally.slowest = min(tally.slowest, ratio)
            tally.seconds += seen.decode_s
            tally.row_steps += seen.row_steps
            tally.row_tokens += seen.row_tokens
            tally.accepted += seen.accepted
            tally.offered_at = _padded_sum(tally.offered_at, seen.offered_at)
            tally.accepted_at = _padded_sum(tally.accepted_at, seen.accepted_at)
            tally.identical &= result.tokens == plain_tokens
            parts = (seen.draft_s, seen.verify_s, seen.sampling_s, seen.other_s)
            tally.time_s = tuple(a + b for a, b in zip(tally.time_s, parts, strict=True))
    plain = tallies.pop("plain")
    return plain.row_tokens / plain.seconds, [
        _summary(name, tally, governed, greedy=params.greedy)
        for name, tally in tallies.items()
        if tally.prompts
    ]


def _summary(name: str, tally: _Tally, governed: bool, *, greedy: bool) -> Speculation:
    return Speculation(
        drafter=name,
        governed=governed,
        tok_per_s=tally.row_tokens / tally.seconds,
        speedup=math.exp(tally.log_ratio / tally.prompts),
        slowest=tally.slowest,
        tokens_per_step=tally.row_tokens / tally.row_steps,
        accepted_per_step=tally.accepted / tally.row_steps,
        acceptance_rates=[hit / of for hit, of in zip(tally.accepted_at, tally.offered_at, strict=True)],
        identical=tally.identical if greedy else None,
        time_s=dict(zip(("draft", "verify", "sampling", "other"), tally.time_s, strict=True)),
    )
