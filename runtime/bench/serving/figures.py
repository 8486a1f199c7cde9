"""From answers to figures: rates, percentiles, goodput, errors by kind."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lineahead.runtime.bench.serving.client import Answer
from lineahead.runtime.bench.serving.load import LATE_S, Load, lateness_s

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, kw_only=True)
class Targets:
    """When an answer is good: both must hold.

    Attributes:
        ttft_s: time to the first token, at most.
        tpot_s: time per token after it, at most.
    """

    ttft_s: float
    tpot_s: float

    def met(self, answer: Answer) -> bool:
        """Whether an answer came whole and in time."""
        return not answer.error and answer.ttft_s <= self.ttft_s and answer.tpot_s <= self.tpot_s


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` percent of the values do not exceed; NaN of none."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share / 100 * len(ordered)) - 1, 0)] if ordered else math.nan


def figures(load: Load, targets: Targets) -> dict[str, Any]:
    """One point of a table.

    Rates are over the whole load, its last answers included. Percentiles are of answers without an error.
    """
    whole = [one for one in load.answers if not one.error]
    good = sum(map(targets.met, load.answers))
    late = lateness_s(load)
    point: dict[str, Any] = {
        "load": load.kind,
        "offered": round(load.offered, 4),
        "requests": len(load.answers),
        "errors": dict(Counter(one.error for one in load.answers if one.error)),
        "seconds": round(load.seconds, 2),
        "requests_per_s": _rounded(len(whole) / load.seconds),
        "goodput_per_s": _rounded(good / load.seconds),
        "good_share": _rounded(good / len(load.answers)) if load.answers else None,
        "tok_per_s": _rounded(sum(one.tokens for one in load.answers) / load.seconds),
        "tokens_mean": _rounded(sum(one.tokens for one in whole) / len(whole)) if whole else None,
        "tokens_counted_by": "server" if all(one.counted for one in whole) else "chunks",
    }
    for name, values in (
        ("ttft_s", [one.ttft_s for one in whole]),
        ("tpot_s", [one.tpot_s for one in whole if one.tokens > 1]),
        ("total_s", [one.last - one.due for one in whole]),
    ):
        for share in PERCENTILES:
            point[f"{name}_p{share}"] = _rounded(percentile(values, share))
    point["sent_late_s"] = _rounded(late if late > LATE_S else 0.0)
    return point


def _rounded(value: float) -> float | None:
    """Four significant digits; null in JSON where there is no number."""
    return float(f"{value:.4g}") if math.isfinite(value) else None
