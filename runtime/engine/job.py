"""A request on its way through the engine."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from lineahead.runtime.engine.request import Delta, Request

Sink = Callable[[Delta], None]


@dataclass(kw_only=True, eq=False)
class Job:
    """What the engine keeps about a request.

    Attributes:
        number: of the request.
        request: what was asked.
        sink: where its deltas go, called in the engine's thread.
        deadline: monotonic second at which it is cut, or None.
        submitted: monotonic second at which it came.
        first: monotonic second of its first token, or None.
        tokens: generated so far.
        cached: prompt tokens that came from the prefix cache.
        admitted: whether it has left the queue.
        done: whether its last delta is out.
    """

    number: int
    request: Request
    sink: Sink
    deadline: float | None
    submitted: float = field(default_factory=time.monotonic)
    first: float | None = None
    tokens: int = 0
    cached: int = 0
    admitted: bool = False
    done: bool = False

    @property
    def key(self) -> str:
        """Who asks."""
        return self.request.key
