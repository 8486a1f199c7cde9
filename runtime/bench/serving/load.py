"""Two kinds of load: clients that wait for their answer, and arrivals that wait for nobody."""

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lineahead.runtime.bench.serving.client import Answer, ask
from lineahead.runtime.bench.serving.target import Target

Body = Mapping[str, Any]
LATE_S = 0.05


@dataclass(frozen=True, kw_only=True)
class Load:
    """What was sent and what came back.

    Attributes:
        kind: ``closed`` (a number of clients) or ``open`` (arrivals at a rate).
        offered: the number of clients, or requests per second.
        seconds: from the first request until the last answer.
        answers: one per request.
    """

    kind: str
    offered: float
    seconds: float
    answers: tuple[Answer, ...]


def closed_load(
    target: Target,
    bodies: Iterator[Body],
    *,
    clients: int,
    requests: int,
    timeout_s: float,
    until: Callable[[], bool] = lambda: False,
) -> Load:
    """So many clients, each sending its next request when it has its answer.

    Args:
        target: the server.
        bodies: what to send, in order.
        clients: how many.
        requests: in all.
        timeout_s: longest silence.
        until: true ends it early.
    """
    lock, answers, left = threading.Lock(), list[Answer](), requests
    began = time.monotonic()

    def client() -> None:
        nonlocal left
        while True:
            with lock:
                if not left or until():
                    return
                left -= 1
                body = next(bodies)
            now = time.monotonic() - began
            found = ask(target, body, began=began, due=now, timeout_s=timeout_s)
            with lock:
                answers.append(found)

    threads = [threading.Thread(target=client, daemon=True) for _ in range(clients)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return Load(kind="closed", offered=clients, seconds=time.monotonic() - began, answers=tuple(answers))


def arrivals(rate: float, seed: int) -> Iterator[float]:
    """Times of a Poisson process, in seconds."""
    clock, now = random.Random(seed), 0.0
    while True:
        now += clock.expovariate(rate)
        yield now


def open_load(
    target: Target,
    bodies: Iterator[Body],
    *,
    rate: float,
    seed: int,
    timeout_s: float,
    requests: int | None = None,
    seconds: float | None = None,
    each: Callable[[float, Sequence[Answer]], None] = lambda now, answers: None,
) -> Load:
    """Arrivals as a Poisson process: none waits for another's answer.

    Args:
        target: the server.
        bodies: what to send, in order.
        rate: requests per second.
        seed: of the arrivals.
        timeout_s: longest silence.
        requests: how many; None for no bound.
        seconds: for how long requests are sent; None for no bound.
        each: called with the time and the answers so far whenever a request is sent.
    """
    assert requests is not None or seconds is not None
    lock, answers, threads = threading.Lock(), list[Answer](), list[threading.Thread]()
    began = time.monotonic()

    def send(body: Body, due: float) -> None:
        found = ask(target, body, began=began, due=due, timeout_s=timeout_s)
        with lock:
            answers.append(found)

    for number, due in enumerate(arrivals(rate, seed)):
        if (requests is not None and number >= requests) or (seconds is not None and due > seconds):
            break
        time.sleep(max(0.0, began + due - time.monotonic()))
        thread = threading.Thread(target=send, args=(next(bodies), due), daemon=True)
        thread.start()
        threads = [one for one in threads if one.is_alive()] + [thread]
        with lock:
            each(due, answers)
    for one in threads:
        one.join()
    return Load(kind="open", offered=rate, seconds=time.monotonic() - began, answers=tuple(answers))


def lateness_s(load: Load) -> float:
    """How far the load fell behind its own schedule at worst; above LATE_S its times are doubtful."""
    return max((one.sent - one.due for one in load.answers), default=0.0)
