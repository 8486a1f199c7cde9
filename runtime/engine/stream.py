"""The asyncio side of a request: deltas cross from the engine's thread to the client's event loop."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from types import TracebackType

from lineahead.runtime.engine.request import Delta

logger = logging.getLogger(__name__)


class Outbox:
    """Collects what the engine's thread has for event loops, and wakes each of them once per cycle."""

    def __init__(self) -> None:
        """Start empty."""
        self._waiting: dict[asyncio.AbstractEventLoop, list[tuple[Stream, Delta]]] = {}

    def add(self, stream: "Stream", delta: Delta) -> None:
        """Keep a delta until the next :meth:`flush`."""
        self._waiting.setdefault(stream.loop, []).append((stream, delta))

    def flush(self) -> None:
        """Hand everything over."""
        waiting, self._waiting = self._waiting, {}
        for loop, letters in waiting.items():
            try:
                loop.call_soon_threadsafe(_deliver, letters)
            except RuntimeError:  # the loop is closed, so nobody is left to read
                logger.info("%d deltas for a closed event loop dropped", len(letters))


def _deliver(letters: list[tuple["Stream", Delta]]) -> None:
    for stream, delta in letters:
        stream.put(delta)


class Stream:
    """The deltas of one request, to be read once, in the event loop that submitted it.

    Leaving ``async with`` before the last delta cancels the request. What a slow reader has not read yet
    waits here; it is never more than the request's own tokens.

    Attributes:
        number: of the request.
        loop: the client's.
    """

    def __init__(self, cancel: Callable[[int], None]) -> None:
        """Make it in the event loop that will read it.

        Args:
            cancel: tells the engine that a request is not wanted any more.
        """
        self.number = -1
        self.loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Delta] = asyncio.Queue()
        self._cancel, self._ended = cancel, False

    def put(self, delta: Delta) -> None:
        """Called in the client's loop."""
        self._ended = self._ended or delta.finish is not None
        self._queue.put_nowait(delta)

    def cancel(self) -> None:
        """Stop decoding; a last delta says ``cancelled``."""
        if not self._ended:
            self._cancel(self.number)

    async def __aiter__(self) -> AsyncIterator[Delta]:
        """Deltas until the one with `finish`."""
        while True:
            delta = await self._queue.get()
            yield delta
            if delta.finish is not None:
                return

    async def __aenter__(self) -> "Stream":
        """Nothing to do."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cancel what has not ended."""
        self.cancel()
