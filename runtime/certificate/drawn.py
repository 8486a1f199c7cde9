"""A drafter that draws its proposals at random, to exercise the acceptance test of lossless sampling."""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from lineahead.runtime.drafters.base import DraftRow
from lineahead.runtime.sampling import distribution
from lineahead.runtime.tree import Tree, root


class DrawnDrafter:
    """Proposes tokens drawn from given logits, the same at every node of a depth.

    Attributes:
        name: ``drawn chain`` or ``drawn tree``.
        max_nodes: of its trees.
    """

    def __init__(self, logits: Sequence[npt.NDArray[np.float32]], *, branches: int) -> None:
        """Say what to draw from.

        Args:
            logits: ``[V]`` per depth; truncated with the request's own parameters before drawing.
            branches: children of the root, drawn without replacement; deeper nodes have one child.
        """
        self.name = "drawn chain" if branches == 1 else "drawn tree"
        self.max_nodes = branches * len(logits)
        self._logits, self._branches = logits, branches

    def propose(self, rows: Sequence[DraftRow]) -> list[Tree]:
        """One tree per row, drawn from its random stream."""
        return [self._propose(row) for row in rows]

    def _propose(self, row: DraftRow) -> Tree:
        depth = min(row.depth, len(self._logits))
        if not depth:
            return root(row.tokens[-1])
        tokens, parents, leaves = [row.tokens[-1]], [-1], [0]
        draws = {}
        for level in range(depth):
            weights = distribution(self._logits[level], row.params)
            count = min(self._branches if level == 0 else 1, int(np.count_nonzero(weights)))
            below = []
            for node in leaves:
                draws[node] = weights
                for token in row.random.choice(len(weights), count, replace=False, p=weights):
                    below.append(len(tokens))
                    tokens.append(int(token))
                    parents.append(node)
            leaves = below
        return Tree(tokens=tuple(tokens), parents=tuple(parents), draws=draws, replacement=False)

    def forget(self, requests: Iterable[int]) -> None:
        """Nothing is kept."""
