"""Where prompts are read: one at a time, in chunks, beside the batch that decodes."""

from lineahead.runtime.engine.prefix_cache import PrefixCache
from lineahead.runtime.row import Row
from lineahead.runtime.session import RowState, Session
from lineahead.runtime.speculate import Decoder, Event


class Lane:
    """Reads one prompt at a time. Calls have the same shapes whatever else is going on.

    Attributes:
        row: the sequence that is being read, or None.
        cached: tokens of it that came from the cache.
        prompt_tokens: tokens read since the start.
    """

    def __init__(self, session: Session, cache: PrefixCache, *, chunk: int) -> None:
        """Take over `session`, a sibling of the batch's."""
        self._session, self._cache, self._chunk = session, cache, chunk
        self._decoder = Decoder(session, chunk=chunk, isolate=True)
        self._wanted: dict[int, bytes] = {}
        self.row: Row | None = None
        self.cached = self.prompt_tokens = 0

    def begin(self, row: Row, *, scope: str) -> None:
        """Start reading a prompt, from the longest cached beginning of it."""
        boundaries = {} if row.source else self._cache.boundaries(row.tokens, scope)
        found = self._cache.find(boundaries)
        self._wanted = self._cache.wanted(boundaries)
        self.row, self.cached = row, 0
        if found is None:
            self._decoder.admit([row])
            return
        row.fed = self.cached = found.length
        self._decoder.join(row, found)

    @property
    def next_tokens(self) -> int:
        """Prompt tokens of the next call."""
        return 0 if self.row is None else min(self._chunk, len(self.row.tokens) - self.row.fed)

    def step(self) -> Event | None:
        """Read a chunk; the event of the first token once the prompt is through."""
        assert self.row is not None
        self.prompt_tokens += self.next_tokens
        events = self._decoder.step()
        if self._decoder.rows:
            committed = int(self._session.length[0])
            digest = self._wanted.pop(committed, None)
            if digest is not None:
                self._cache.put(digest, self._session.take(0).committed())
        if not events:
            return None
        if events[0].finish:
            self.row = None
        return events[0]

    def release(self) -> tuple[Row, RowState]:
        """Hand over the sequence, which has its first token, with its state."""
        row = self.row
        assert row is not None
        self.row = None
        return row, self._decoder.leave(row.request)

    def drop(self) -> None:
        """Forget the sequence that is being read."""
        self._decoder.abandon()
        self.row = None
