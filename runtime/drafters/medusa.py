"""Medusa heads: a small graph turns the last hidden state into candidates for the next few tokens."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from lineahead.errors import InputError
from lineahead.runtime.drafters.base import DraftRow
from lineahead.runtime.tree import Tree, best_nodes, by_rank, root

Shape = Literal["adaptive", "chain"] | tuple[tuple[int, int, int], ...]


class Heads(Protocol):
    """Runs the draft graph."""

    def __call__(
        self, hidden: npt.NDArray[np.float32], /
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """``[B, E]`` to tokens ``[B, K, top]``, best first, and their log-probabilities ``[B, K, top]``."""


class MedusaDrafter:
    """Builds a tree from the heads' candidates; head k proposes the token k + 1 places after the root.

    Source: Cai et al., 2024, arXiv:2401.10774, section 2.1; the adaptive shape picks, in every step, the
    nodes with the largest product of (calibrated) head probabilities.
    """

    name = "medusa"

    def __init__(
        self,
        heads: Heads,
        *,
        max_nodes: int = 8,
        shape: Shape = "adaptive",
        calibration: npt.NDArray[np.floating[Any]] | None = None,
    ) -> None:
        """Choose the tree.

        Args:
            heads: runs the draft graph.
            max_nodes: nodes below the root.
            shape: ``adaptive`` by probability in every step, ``chain`` of best tokens, or a fixed tree of
                ``(parent, head, rank)`` nodes (see ``tree.best_nodes`` on measured accuracies).
            calibration: ``[K, top]`` added to the log-probabilities before nodes are compared.

        Raises:
            InputError: when `max_nodes` is not positive.
        """
        if max_nodes < 1:
            raise InputError(
                f"medusa with max_nodes={max_nodes}", hint="Use at least one node, or no drafter."
            )
        self.max_nodes = max_nodes
        self._heads, self._shape, self._calibration = heads, shape, calibration

    def propose(self, rows: Sequence[DraftRow]) -> list[Tree]:
        """One tree per row; the root alone where there is no hidden state yet."""
        trees = [root(row.tokens[-1]) for row in rows]
        ready = [i for i, row in enumerate(rows) if row.hidden is not None and min(row.nodes, row.depth) > 0]
        if not ready:
            return trees
        tokens, log_probs = self._heads(np.stack([np.asarray(rows[i].hidden, np.float32) for i in ready]))
        for place, i in enumerate(ready):
            row, count = rows[i], min(rows[i].nodes, self.max_nodes)
            tree = by_rank(row.tokens[-1], tokens[place], self._nodes(log_probs[place, : row.depth], count))
            trees[i] = tree.pruned(depth=row.depth, nodes=count + 1)
        return trees

    def _nodes(self, scores: npt.NDArray[np.float32], count: int) -> Sequence[tuple[int, int, int]]:
        if self._shape == "chain":
            return [(head, head, 0) for head in range(min(count, len(scores)))]
        if self._shape == "adaptive":
            if self._calibration is not None:
                scores = scores + self._calibration[: len(scores), : scores.shape[1]]
            return best_nodes(scores, count)
        return self._shape[:count]

    def forget(self, requests: Iterable[int]) -> None:
        """Nothing is kept."""
