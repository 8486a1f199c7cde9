"""The whole measurement: every load on every server, one after another."""

import itertools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lineahead.errors import BackendError
from lineahead.runtime.bench.machine import processor
from lineahead.runtime.bench.serving.figures import figures
from lineahead.runtime.bench.serving.load import Load, closed_load, open_load
from lineahead.runtime.bench.serving.request import SHARES, ServeRequest
from lineahead.runtime.bench.serving.target import Target


@dataclass(frozen=True, kw_only=True)
class ServeReport:
    """What was measured.

    Attributes:
        machine: processor and cores; the load runs on them too.
        settings: the request's.
        servers: by name: address, model, points of :func:`figures`.
        began: when, in seconds since 1970.
    """

    machine: dict[str, Any]
    settings: dict[str, Any]
    servers: dict[str, dict[str, Any]]
    began: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dict(vars(self))


def bench_servers(
    targets: Sequence[Target],
    request: ServeRequest,
    *,
    progress: Callable[[str], None] = lambda message: None,
) -> ServeReport:
    """Measure servers, one after another; those that are not measured should be idle.

    Args:
        targets: the servers.
        request: loads.
        progress: called with a line before each load.

    Raises:
        BackendError: when a server answers none of the requests before the first load.
        InputError: when the prompts cannot be read.
    """
    began, servers = time.time(), dict[str, dict[str, Any]]()
    for target in targets:
        warm_up(target, request, progress)
        points = [figures(one, request.targets) for one in _loads(target, request, progress)]
        servers[target.name] = {"url": target.url, "model": target.model, "points": points}
    shown = {**vars(request), "targets": asdict(request.targets)}
    shown["prompts"] = [path.name for path in request.prompts]
    machine = {"processor": processor(), "cores": os.cpu_count()}
    return ServeReport(machine=machine, settings=shown, servers=servers, began=began)


def warm_up(target: Target, request: ServeRequest, progress: Callable[[str], None]) -> None:
    """Requests that nobody measures.

    Raises:
        BackendError: when all of them fail.
    """
    if not request.warmup:
        return
    progress(f"{target.name}: {request.warmup} requests to warm up")
    # The last prompts of the order, so that no measured request finds its prompt read already.
    texts = itertools.islice(request.bodies(), max(len(request.texts()) - request.warmup, 0), None)
    load = closed_load(target, texts, clients=1, requests=request.warmup, timeout_s=request.timeout_s)
    errors = [one.error for one in load.answers]
    if all(errors):
        raise BackendError(
            f"{target.name}: every request failed: {errors[0]}", hint="Look at the server's own messages."
        )


def _loads(target: Target, request: ServeRequest, progress: Callable[[str], None]) -> list[Load]:
    found = []
    for clients in request.clients:
        progress(f"{target.name}: {clients} clients")
        found.append(
            closed_load(
                target,
                request.bodies(),
                clients=clients,
                requests=max(request.requests, clients) if clients > 1 else max(request.requests // 4, 1),
                timeout_s=request.timeout_s,
            )
        )
    for rate in (*request.rates, *(rising_rates(found[-1]) if request.rising else ())):
        progress(f"{target.name}: {rate:.3g} requests/s")
        found.append(
            open_load(
                target,
                request.bodies(),
                rate=rate,
                seed=request.seed,
                requests=request.requests,
                timeout_s=request.timeout_s,
            )
        )
    return found


def rising_rates(load: Load) -> tuple[float, ...]:
    """SHARES of the rate that a closed load reached."""
    reached = sum(not one.error for one in load.answers) / load.seconds
    return tuple(round(share * reached, 4) for share in SHARES if reached)
