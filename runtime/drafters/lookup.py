"""Prompt lookup: what followed the last few tokens when they last occurred, in the prompt or since."""

from collections.abc import Iterable, Sequence

from lineahead.errors import InputError
from lineahead.runtime.drafters.base import DraftRow
from lineahead.runtime.tree import Tree, chain


class _Index:
    """Where each n-gram of a growing text was last continued."""

    def __init__(self, shortest: int, longest: int) -> None:
        self.lengths = range(longest, shortest - 1, -1)
        self.after: dict[tuple[int, ...], int] = {}
        self.seen = 0

    def extend(self, tokens: Sequence[int]) -> None:
        """Enter the n-grams that end before each new token, the last token's own not yet."""
        for position in range(max(self.seen, 1), len(tokens)):
            for length in self.lengths:
                if length <= position:
                    self.after[tuple(tokens[position - length : position])] = position
        self.seen = len(tokens)

    def find(self, tokens: Sequence[int]) -> int | None:
        """Position after the latest earlier occurrence of the longest matching suffix."""
        for length in self.lengths:
            if length < len(tokens):
                position = self.after.get(tuple(tokens[-length:]))
                if position is not None:
                    return position
        return None


class LookupDrafter:
    """Copies a chain of up to `max_nodes` tokens from the latest place where the text's last n-gram occurred.

    An encoder-decoder's source counts as text before its target.

    Source: Saxena, 2023, "Prompt Lookup Decoding" (github.com/apoorvumang/prompt-lookup-decoding); here
    with an index that grows with the text, so a step costs the same at any length.
    """

    name = "lookup"

    def __init__(self, *, max_nodes: int = 8, shortest: int = 2, longest: int = 4) -> None:
        """Choose the draft's length and the n-grams' sizes.

        Args:
            max_nodes: tokens to copy at most.
            shortest: smallest n-gram that counts as a match.
            longest: largest n-gram looked for; tried first.

        Raises:
            InputError: when the sizes are not 1 <= shortest <= longest or `max_nodes` is not positive.
        """
        if not 1 <= shortest <= longest or max_nodes < 1:
            raise InputError(
                f"lookup with max_nodes={max_nodes}, n-grams {shortest}..{longest}",
                hint="Use 1 <= shortest <= longest and at least one node.",
            )
        self.max_nodes = max_nodes
        self._sizes = shortest, longest
        self._indexes: dict[int, _Index] = {}

    def propose(self, rows: Sequence[DraftRow]) -> list[Tree]:
        """A chain per row, or the root when nothing matches."""
        return [self._propose(row) for row in rows]

    def _propose(self, row: DraftRow) -> Tree:
        index = self._indexes.setdefault(row.request, _Index(*self._sizes))
        text = [*row.source, *row.tokens] if row.source else row.tokens
        index.extend(text)
        count = min(self.max_nodes, row.nodes, row.depth)
        position = index.find(text) if count > 0 else None
        copied = [] if position is None else text[position : position + count]
        return chain([row.tokens[-1], *copied])

    def forget(self, requests: Iterable[int]) -> None:
        """Drop the indexes of ended requests."""
        for request in requests:
            self._indexes.pop(request, None)
