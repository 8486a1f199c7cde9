"""Draft lengths for a batch whose size changes all the time."""

from lineahead.runtime.governor import Governor
from lineahead.runtime.tree import Tree


class BatchGovernor(Governor):
    """One governor for every power of two of the batch: what drafts cost depends on how many share a step.

    Rows that gain by speculation alone lose by it in a batch that fills the machine; each size learns its own
    costs and acceptance, and keeps its own ledger against plain decoding.
    """

    def __init__(self, max_nodes: int) -> None:
        """Start without knowledge.

        Args:
            max_nodes: most nodes that the drafter proposes.
        """
        super().__init__(max_nodes)
        self._max_nodes = max_nodes
        self._by_size: dict[int, Governor] = {}
        self._now: Governor = self
        self.chosen = 0

    def nodes(self, batch: int) -> int:
        """How many nodes to propose to each row in the next step."""
        size = 1 << max(batch - 1, 0).bit_length()
        if size not in self._by_size:
            self._by_size[size] = Governor(self._max_nodes)
        self._now = self._by_size[size]
        self.chosen = self._now.nodes(size)
        return self.chosen

    def observe(self, tree: Tree, accepted: int) -> None:
        """One row of a step."""
        self._now.observe(tree, accepted)

    def timed(self, nodes: int, draft_s: float, step_s: float) -> None:
        """The step as a whole, after its rows."""
        self._now.timed(nodes, draft_s, step_s)
