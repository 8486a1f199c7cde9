"""The order in which waiting requests are admitted: who has been served least comes first."""

import heapq
from collections import deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class Keyed(Protocol):
    """What waits."""

    @property
    def key(self) -> str:
        """Who asks."""

    @property
    def done(self) -> bool:
        """Whether it does not want to be served any more."""


Item = TypeVar("Item", bound=Keyed)


class FairQueue(Generic[Item]):
    """First come, first served within a key; between keys, the one with the least service so far.

    Service is counted in tokens. A key that comes back after a pause starts at the least count of those that
    wait, so that nobody saves up a claim while away.

    Source: Sheng et al., 2024, "Fairness in Serving Large Language Models", arXiv:2401.00588, algorithm 2
    (virtual token counter).
    """

    def __init__(self) -> None:
        """Start empty."""
        self._waiting: dict[str, deque[Item]] = {}
        self._served: dict[str, float] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._count = self._ticket = 0
        self._floor = 0.0

    def __len__(self) -> int:
        """Requests that wait."""
        return self._count

    def push(self, item: Item) -> None:
        """Add a request behind those of its key."""
        queue = self._waiting.setdefault(item.key, deque())
        queue.append(item)
        self._count += 1
        if len(queue) == 1:
            self._served[item.key] = max(self._served.get(item.key, 0.0), self._floor)
            self._enter(item.key)

    def _enter(self, key: str) -> None:
        self._ticket += 1
        heapq.heappush(self._heap, (self._served[key], self._ticket, key))

    def pop(self) -> Item | None:
        """Take the next request, or None."""
        while self._heap:
            served, _, key = heapq.heappop(self._heap)
            queue = self._waiting.get(key)
            if not queue:
                continue
            if served < self._served[key]:
                self._enter(key)
                continue
            self._floor = max(self._floor, served)
            item = queue.popleft()
            if queue:
                self._enter(key)
            else:
                del self._waiting[key]
            if not item.done:
                self._count -= 1
                return item
        return None

    def charge(self, key: str, tokens: float) -> None:
        """Count service for a key."""
        self._served[key] = self._served.get(key, 0.0) + tokens
        if len(self._served) > 4 * len(self._waiting) + 1024:
            self._served = {
                one: n for one, n in self._served.items() if one in self._waiting or n > self._floor
            }

    def discard(self) -> None:
        """Count one waiting request less: it is done, and :meth:`pop` will pass over it."""
        self._count -= 1

    def __iter__(self) -> Iterator[Item]:
        """All that wait, in no particular order."""
        for queue in list(self._waiting.values()):
            yield from [item for item in queue if not item.done]
