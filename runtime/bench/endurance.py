"""Does a long text cost more at its end than at its start? Time and memory along one stream of tokens."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from lineahead.runtime.bench.machine import resident_megabytes
from lineahead.runtime.bench.plot import pyplot_on_files
from lineahead.runtime.generate import Generator
from lineahead.runtime.sampling import SamplingParams

BUCKETS = 100


@dataclass(frozen=True, kw_only=True)
class Endurance:
    """One stream, cut into buckets of equal numbers of tokens.

    Attributes:
        tokens: last token of each bucket.
        milliseconds: median time of a token in it.
        megabytes: resident memory of the process at its end.
    """

    tokens: tuple[int, ...]
    milliseconds: tuple[float, ...]
    megabytes: tuple[float, ...]

    @property
    def slower(self) -> float:
        """Median time of a token in the last tenth over that in the first."""
        part = max(len(self.milliseconds) // 10, 1)
        return median(self.milliseconds[-part:]) / median(self.milliseconds[:part])

    @property
    def growth(self) -> float:
        """Megabytes at the end less those after the first tenth."""
        return self.megabytes[-1] - self.megabytes[max(len(self.megabytes) // 10 - 1, 0)]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "slower": round(self.slower, 3), "growth_megabytes": round(self.growth, 1)}


def measure_endurance(
    generator: Generator,
    prompt: Sequence[int],
    tokens: int,
    *,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> Endurance:
    """Stream `tokens` tokens after `prompt`, past the trained positions if need be.

    Sampling at temperature 1 keeps the text from repeating itself for ever.
    """
    generator.artifact.require_decoder("endurance")
    params = SamplingParams(max_tokens=tokens, ignore_eos=True, temperature=1.0, top_k=50)
    size = max(tokens // BUCKETS, 1)
    ends: list[int] = []
    milliseconds: list[float] = []
    megabytes: list[float] = []
    taken: list[float] = []
    last = time.perf_counter()
    for count, _ in enumerate(generator.stream([prompt], params, ignore_position_limit=True), 1):
        now = time.perf_counter()
        taken.append(now - last)
        last = now
        if len(taken) == size:
            progress("streaming", count, tokens)
            ends.append(count)
            milliseconds.append(1e3 * median(taken))
            megabytes.append(resident_megabytes(os.getpid()))
            taken.clear()
            last = time.perf_counter()
    return Endurance(tokens=tuple(ends), milliseconds=tuple(milliseconds), megabytes=tuple(megabytes))


def plot_endurance(found: Endurance, path: Path, title: str) -> None:
    """Draw time and memory over the length of the text.

    Raises:
        InputError: when matplotlib is not installed.
    """
    pyplot = pyplot_on_files()
    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(7, 5), layout="constrained")
    above.plot(found.tokens, found.milliseconds)
    above.set(ylabel="ms per token (median)", ylim=(0, 1.5 * max(found.milliseconds)), title=title)
    below.plot(found.tokens, found.megabytes)
    below.set(ylabel="resident memory, MB", xlabel="tokens", ylim=(0, 1.5 * max(found.megabytes)))
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
