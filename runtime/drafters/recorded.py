"""Proposals from a text that is already known, spoiled here and there, to exercise verification."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from lineahead.runtime.drafters.base import DraftRow
from lineahead.runtime.tree import Tree, from_paths, root


class RecordedDrafter:
    """Proposes the recorded continuation, wrong from a random depth on; as a tree, among wrong siblings.

    `verify` uses it: whatever the quality of the trained drafters, drafts of every length get accepted and
    rejected at every offset.
    """

    def __init__(
        self,
        texts: Mapping[int, Sequence[int]],
        *,
        vocab_size: int,
        depth: int = 4,
        branches: int = 1,
        hit_rate: float = 0.7,
        seed: int = 0,
    ) -> None:
        """Record the texts.

        Args:
            texts: whole token list (prompt and continuation) of each request.
            vocab_size: wrong tokens are drawn below it.
            depth: longest path.
            branches: nodes per depth, of which at most one is right; 1 gives a chain.
            hit_rate: probability that the right token is among the nodes of a depth.
            seed: of the spoiling.
        """
        self.name = "chain" if branches == 1 else "tree"
        self.max_nodes = depth * branches
        self._texts, self._vocab, self._depth, self._branches = texts, vocab_size, depth, branches
        self._hit_rate, self._random = hit_rate, np.random.default_rng(seed)

    def propose(self, rows: Sequence[DraftRow]) -> list[Tree]:
        """One tree per row; the root alone past the end of the recording."""
        return [self._propose(row) for row in rows]

    def _propose(self, row: DraftRow) -> Tree:
        text = self._texts[row.request]
        future = text[len(row.tokens) : len(row.tokens) + min(self._depth, row.depth)]
        before: list[int] = []
        paths: list[list[int]] = []
        for token in future:
            wrong = self._random.integers(1, self._vocab, self._branches)
            level = [int(one) for one in (token + wrong) % self._vocab]
            place = int(self._random.integers(self._branches))
            hit = bool(self._random.random() < self._hit_rate)
            if hit:
                level[place] = token
            paths += [[*before, one] for one in dict.fromkeys(level)]
            before = [*before, level[place]]
        tree = from_paths(row.tokens[-1], paths) if paths else root(row.tokens[-1])
        return tree.pruned(depth=row.depth, nodes=row.nodes + 1)

    def forget(self, requests: Iterable[int]) -> None:
        """Recordings stay."""
