"""States of prompts' beginnings, so that what many prompts share is read once."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lineahead.runtime.session import RowState

KNOWN = 1 << 16


@dataclass
class PrefixStatistics:
    """Counts since the start.

    Attributes:
        hits: prompts that began with a cached state.
        misses: prompts that had a boundary but found none.
        hit_tokens: prompt tokens that were not read again.
        evicted: states dropped for room.
        nbytes: size of what is kept.
        entries: how many states are kept.
    """

    hits: int = 0
    misses: int = 0
    hit_tokens: int = 0
    evicted: int = 0
    nbytes: int = 0
    entries: int = 0


class PrefixCache:
    """Committed states by the hash of the tokens they hold, least recently used dropped first.

    States exist at multiples of `grain` tokens only, where chunks of the prompt end anyway: a prompt that
    continues a cached state is read in the same calls as without it, so its text is the same bit for bit. A
    state is kept at the last boundary of every prompt, and at the last one that an earlier prompt has shared.
    """

    def __init__(self, budget: int, *, grain: int) -> None:
        """Start empty.

        Args:
            budget: bytes; 0 switches the cache off.
            grain: tokens between boundaries.
        """
        self.statistics = PrefixStatistics()
        self._budget, self._grain = budget, grain
        self._states: OrderedDict[bytes, RowState] = OrderedDict()
        self._known: OrderedDict[bytes, None] = OrderedDict()

    def boundaries(self, tokens: Sequence[int], scope: str) -> dict[int, bytes]:
        """Hash of every beginning that ends at a boundary and leaves at least one token."""
        if not self._budget:
            return {}
        running = hashlib.blake2b(scope.encode(), digest_size=20)
        found: dict[int, bytes] = {}
        array = np.asarray(tokens, np.int32)
        for end in range(self._grain, len(array), self._grain):
            running.update(array[end - self._grain : end].tobytes())
            found[end] = running.digest()
        return found

    def find(self, boundaries: dict[int, bytes]) -> RowState | None:
        """The longest cached beginning."""
        for digest in reversed(boundaries.values()):
            state = self._states.get(digest)
            if state is not None:
                self._states.move_to_end(digest)
                self.statistics.hits += 1
                self.statistics.hit_tokens += state.length
                return state
        self.statistics.misses += bool(boundaries)
        return None

    def wanted(self, boundaries: dict[int, bytes]) -> dict[int, bytes]:
        """Boundaries whose states are to be kept when this prompt is read; remembers all of them."""
        seen = [end for end, digest in boundaries.items() if digest in self._known]
        for digest in boundaries.values():
            self._known[digest] = None
            self._known.move_to_end(digest)
        while len(self._known) > KNOWN:
            self._known.popitem(last=False)
        ends = {*seen[-1:], *list(boundaries)[-1:]}
        return {end: boundaries[end] for end in ends if boundaries[end] not in self._states}

    def put(self, digest: bytes, state: RowState) -> None:
        """Keep a state, dropping others as needed; one that is larger than the budget is not kept."""
        size = state.nbytes
        if digest in self._states or size > self._budget:
            return
        while self.statistics.nbytes + size > self._budget:
            _, old = self._states.popitem(last=False)
            self.statistics.nbytes -= old.nbytes
            self.statistics.evicted += 1
        self._states[digest] = state
        self.statistics.nbytes += size
        self.statistics.entries = len(self._states)
