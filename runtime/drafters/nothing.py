"""Plain decoding: nothing is proposed."""

from collections.abc import Iterable, Sequence

from lineahead.runtime.drafters.base import DraftRow
from lineahead.runtime.tree import Tree, root


class NoDrafter:
    """Proposes nothing, so every step yields exactly one token."""

    name = "none"
    max_nodes = 0

    def propose(self, rows: Sequence[DraftRow]) -> list[Tree]:
        """The root of every row."""
        return [root(row.tokens[-1]) for row in rows]

    def forget(self, requests: Iterable[int]) -> None:
        """Nothing is kept."""
