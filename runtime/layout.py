"""From rows and trees to one call of the step graph."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from lineahead.runtime.session import StepInput
from lineahead.runtime.tree import Tree, ancestors


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one row contributes to a call: a chain of text, and below its last token a tree.

    Attributes:
        chain: tokens of the text that have not been through the model; the tree's root is the last of them.
        tree: the proposal, or None when the chain does not reach the end of the text (prefill goes on).
    """

    chain: Sequence[int]
    tree: Tree | None

    @property
    def nodes(self) -> int:
        """Nodes of the row."""
        return len(self.chain) + (len(self.tree) - 1 if self.tree else 0)

    @property
    def results(self) -> int:
        """Results wanted: one per node of the tree."""
        return len(self.tree) if self.tree else 1

    @property
    def longest(self) -> int:
        """Most nodes of the row that can become text."""
        return len(self.chain) + (max(self.tree.depths) if self.tree else 0)

    def accept(self, path: Sequence[int]) -> list[int]:
        """Nodes of the call that became text, given the accepted tree nodes."""
        first = len(self.chain)
        return [*range(first), *(first - 1 + node for node in path)]


@lru_cache(maxsize=64)
def triangle(nodes: int) -> npt.NDArray[np.bool_]:
    """Ancestor mask of a chain."""
    mask = np.tri(nodes, dtype=np.bool_)
    mask.flags.writeable = False
    return mask


def lay_out(parts: Sequence[Part], accepts: Sequence[Sequence[int]], width: int) -> StepInput:
    """Pad every row to the widest; padding nodes are roots of their own (depth 0), so they touch nothing.

    Args:
        parts: one per row.
        accepts: per row, nodes of the previous call that became text, in order.
        width: most rows that any sequence can have accepted in the previous call (0 before the first call).
    """
    batch, nodes = len(parts), max(part.nodes for part in parts)
    results = max(part.results for part in parts)
    ids = np.zeros((batch, nodes), np.int64)
    mask = np.zeros((batch, nodes, nodes), np.bool_)
    output_index = np.zeros((batch, results), np.int64)
    accept_index = np.zeros((batch, width), np.int64)
    accept_count = np.zeros(batch, np.int64)
    for b, (part, accept) in enumerate(zip(parts, accepts, strict=True)):
        first, used = len(part.chain), part.nodes
        ids[b, :first] = part.chain
        mask[b, :first, :first] = triangle(first)
        output_index[b] = first - 1
        if part.tree is not None and len(part.tree) > 1:
            ids[b, first:used] = part.tree.tokens[1:]
            mask[b, first:used, : first - 1] = True
            mask[b, first - 1 : used, first - 1 : used] = ancestors(part.tree.parents)
            output_index[b, : len(part.tree)] = np.arange(first - 1, used)
        if used < nodes:
            spare = np.arange(used, nodes)
            mask[b, spare, spare] = True
        accept_index[b, : len(accept)] = accept
        accept_count[b] = len(accept)
    return StepInput(
        input_ids=ids,
        ancestors=mask,
        output_index=output_index,
        accept_index=accept_index,
        accept_count=accept_count,
    )
