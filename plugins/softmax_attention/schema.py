"""What a growing key and value cache is: ports, capacity, what a query sees. Standard library only.

Position p of a text lives in row p. The row axis has a capacity that the caller enlarges between calls; rows
from a text's length on hold rejected (finite) rows, which weigh nothing and which later commits overwrite.
Everything else (deferred commit, ancestors, pending rows) is as for the linear operator, so that one graph
holds both.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

GRAIN = 256  # rows added at a time: at most so many are idle, and growing copies 1/256 of the cache a token
STATE = ("key", "value")

Pattern = Literal["whole", "grouped", "sliding"]


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """One layer's softmax attention.

    Attributes:
        pattern: which earlier keys a query sees: all (``whole``), those of its own group of `window`
            positions (``grouped``), or the last `window` (``sliding``).
        window: in tokens; 0 for ``whole``.
    """

    state_ports: ClassVar[tuple[str, ...]] = STATE

    pattern: Pattern = "whole"
    window: int = 0


def capacity(rows: int) -> int:
    """Rows to allocate for a cache that must hold `rows`."""
    return max(1, -(-rows // GRAIN)) * GRAIN
