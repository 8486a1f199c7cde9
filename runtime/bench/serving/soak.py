"""Hours at a share of what a server can do: memory must stay, and so must times."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from lineahead.errors import BackendError
from lineahead.runtime.bench.machine import resident_megabytes
from lineahead.runtime.bench.serving.client import Answer
from lineahead.runtime.bench.serving.figures import figures
from lineahead.runtime.bench.serving.load import closed_load, open_load
from lineahead.runtime.bench.serving.report import warm_up
from lineahead.runtime.bench.serving.request import ServeRequest
from lineahead.runtime.bench.serving.target import Target

SAMPLES = 240


@dataclass(frozen=True, kw_only=True)
class Soak:
    """A long load.

    Attributes:
        capacity_per_s: requests per second that the closed load before it reached.
        rate_per_s: requests per second of the soak.
        point: :func:`figures` of all of it.
        seconds: times of the samples below.
        megabytes: resident memory of the server; empty when its process is not known.
        answered: answers so far.
        failed: those with an error.
        ttft_s: median over the sample's own time.
    """

    capacity_per_s: float
    rate_per_s: float
    point: dict[str, Any]
    seconds: tuple[float, ...]
    megabytes: tuple[float, ...]
    answered: tuple[int, ...]
    failed: tuple[int, ...]
    ttft_s: tuple[float | None, ...]

    @property
    def growth_megabytes(self) -> float | None:
        """Median memory of the last tenth less that of the second tenth: the first one fills caches."""
        part = len(self.megabytes) // 10
        if not part:
            return None
        return round(median(self.megabytes[-part:]) - median(self.megabytes[part : 2 * part]), 2)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "growth_megabytes": self.growth_megabytes}


def soak(
    target: Target,
    request: ServeRequest,
    *,
    minutes: float,
    share: float,
    process: int | None,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> Soak:
    """Measure what the server can do, then ask for a share of it for a long time.

    Args:
        target: the server.
        request: its largest closed load is the measure; bodies and targets.
        minutes: how long.
        share: of the capacity.
        process: the server's, for its memory; None when it is not on this machine.
        progress: called with seconds done and in all.

    Raises:
        BackendError: when the server answers nothing.
        InputError: when there is no such process, or prompts cannot be read.
    """
    if process is not None:
        resident_megabytes(process)
    warm_up(target, request, lambda message: None)
    measured = closed_load(
        target,
        request.bodies(),
        clients=max(request.clients),
        requests=request.requests,
        timeout_s=request.timeout_s,
    )
    capacity = sum(not one.error for one in measured.answers) / measured.seconds
    if not capacity:
        raise BackendError(
            f"{target.name}: every request failed: {measured.answers[0].error}",
            hint="Look at the server's own messages.",
        )
    samples = _Samples(60 * minutes, process, progress)
    load = open_load(
        target,
        itertools.islice(request.bodies(), request.requests, None),
        rate=share * capacity,
        seed=request.seed,
        seconds=60 * minutes,
        timeout_s=request.timeout_s,
        each=samples.take,
    )
    return Soak(
        capacity_per_s=round(capacity, 4),
        rate_per_s=round(share * capacity, 4),
        point=figures(load, request.targets),
        seconds=tuple(samples.seconds),
        megabytes=tuple(samples.megabytes),
        answered=tuple(samples.answered),
        failed=tuple(samples.failed),
        ttft_s=tuple(samples.ttft_s),
    )


class _Samples:
    """SAMPLES looks at the server, evenly spread over the load."""

    def __init__(
        self, seconds: float, process: int | None, progress: Callable[[str, int, int], None]
    ) -> None:
        self._every, self._all = seconds / SAMPLES, int(seconds)
        self._process, self._progress = process, progress
        self._seen = 0
        self.seconds: list[float] = []
        self.megabytes: list[float] = []
        self.answered: list[int] = []
        self.failed: list[int] = []
        self.ttft_s: list[float | None] = []

    def take(self, now: float, answers: Sequence[Answer]) -> None:
        """Called at every arrival."""
        if self.seconds and now < self.seconds[-1] + self._every:
            return
        new = [one.ttft_s for one in answers[self._seen :] if not one.error]
        self._seen = len(answers)
        self.seconds.append(round(now, 2))
        if self._process is not None:
            self.megabytes.append(round(resident_megabytes(self._process), 2))
        self.answered.append(len(answers))
        self.failed.append(sum(bool(one.error) for one in answers))
        self.ttft_s.append(round(median(new), 4) if new else None)
        self._progress("soaking", int(now), self._all)
