"""Token trees: shapes, ancestor masks, and the choice of nodes that are most likely to be accepted.

A tree is a list of parents in topological order: node 0 is the root (parent -1), every other node's parent
comes before it.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from lineahead.errors import InputError

Parents = tuple[int, ...]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A root token and the tokens proposed to follow it.

    Attributes:
        tokens: token of every node; node 0 is the last token of the text so far.
        parents: parent of every node.
        draws: for nodes whose children were *drawn*, the distribution ``[V]`` they were drawn from (already
            truncated like the target's); a node without an entry has children that were chosen, not drawn.
        replacement: whether siblings were drawn independently, rather than each without those before it.
    """

    tokens: tuple[int, ...]
    parents: Parents
    draws: Mapping[int, npt.NDArray[np.float64]] = field(default_factory=dict)
    replacement: bool = True

    def __post_init__(self) -> None:
        """Refuse what is not a tree.

        Raises:
            InputError: when parents are out of order or their number is wrong.
        """
        if len(self.tokens) != len(self.parents) or self.parents[:1] != (-1,):
            raise InputError(
                "a tree needs one parent per token and -1 for the root", hint="See runtime/tree.py."
            )
        if any(not 0 <= parent < node for node, parent in enumerate(self.parents) if node):
            raise InputError(
                f"parents {self.parents} are not in topological order", hint="List parents first."
            )

    def __len__(self) -> int:
        """Nodes, the root included."""
        return len(self.tokens)

    def children(self, node: int) -> tuple[int, ...]:
        """Children of `node`, in proposal order."""
        return children(self.parents)[node]

    @property
    def depths(self) -> tuple[int, ...]:
        """Depth of every node; the root has 0."""
        return depths(self.parents)

    def path(self, node: int) -> list[int]:
        """Tokens from below the root to `node`."""
        tokens: list[int] = []
        while node > 0:
            tokens.insert(0, self.tokens[node])
            node = self.parents[node]
        return tokens

    def pruned(self, *, depth: int, nodes: int) -> "Tree":
        """The tree without nodes deeper than `depth`, and without those after the first `nodes`."""
        if len(self) <= nodes and max(self.depths) <= depth:
            return self
        kept = [node for node, one in enumerate(self.depths[:nodes]) if one <= depth] or [0]
        place = {node: i for i, node in enumerate(kept)}
        return Tree(
            tokens=tuple(self.tokens[node] for node in kept),
            parents=tuple(place.get(self.parents[node], -1) for node in kept),
            draws={place[node]: q for node, q in self.draws.items() if node in place},
            replacement=self.replacement,
        )


def root(token: int) -> Tree:
    """The tree that proposes nothing."""
    return Tree(tokens=(token,), parents=(-1,))


def chain(tokens: Sequence[int]) -> Tree:
    """The tree with one path, from the root token on."""
    return Tree(tokens=tuple(tokens), parents=chain_parents(len(tokens)))


def from_paths(root_token: int, paths: Iterable[Sequence[int]]) -> Tree:
    """The smallest tree that holds every path of tokens below `root_token`; prefixes are shared."""
    tokens, parents = [root_token], [-1]
    known: dict[tuple[int, int], int] = {}
    for path in paths:
        node = 0
        for token in path:
            if (node, token) not in known:
                known[node, token] = len(tokens)
                tokens.append(token)
                parents.append(node)
            node = known[node, token]
    return Tree(tokens=tuple(tokens), parents=tuple(parents))


@lru_cache(maxsize=256)
def chain_parents(nodes: int) -> Parents:
    """Parents of a chain."""
    return tuple(range(-1, nodes - 1))


@lru_cache(maxsize=4096)
def children(parents: Parents) -> tuple[tuple[int, ...], ...]:
    """Children of every node, in order."""
    found: list[list[int]] = [[] for _ in parents]
    for node, parent in enumerate(parents):
        if node:
            found[parent].append(node)
    return tuple(map(tuple, found))


@lru_cache(maxsize=4096)
def depths(parents: Parents) -> tuple[int, ...]:
    """Depth of every node."""
    found = [0] * len(parents)
    for node, parent in enumerate(parents):
        if node:
            found[node] = found[parent] + 1
    return tuple(found)


@lru_cache(maxsize=1024)
def ancestors(parents: Parents) -> Bools:
    """Ancestor mask ``[N, N]`` bool: row i marks node i and its ancestors. Read-only (it is cached)."""
    mask = np.eye(len(parents), dtype=np.bool_)
    for node, parent in enumerate(parents):
        if node:
            mask[node] |= mask[parent]
    mask.flags.writeable = False
    return mask


def best_nodes(scores: npt.NDArray[np.floating], nodes: int) -> list[tuple[int, int, int]]:
    """The most likely nodes of the product tree of K independent heads, best first; a connected tree.

    The probability of a node is the product of its ranks' probabilities along the path, so a node never
    beats its parent and a best-first search is optimal for the expected number of accepted tokens.

    Args:
        scores: ``[K, top]`` log-probability of every rank of every head, descending within a head.
        nodes: how many nodes besides the root.

    Returns:
        ``(parent, head, rank)`` per node, where parent 0 is the root and parent i the i-th entry (counting
        from 1).

    Source: Cai et al., 2024, arXiv:2401.10774, section 2.3.3 (the tree is built greedily from head
    accuracies).
    """
    heads, top = scores.shape
    table = scores.tolist()
    found: list[tuple[int, int, int]] = []
    heap = [(-table[0][0], 0, 0, 0, 0.0)] if heads and top else []
    while heap and len(found) < nodes:
        cost, parent, head, rank, before = heapq.heappop(heap)
        if cost == np.inf:
            break
        found.append((parent, head, rank))
        if rank + 1 < top:
            heapq.heappush(heap, (before - table[head][rank + 1], parent, head, rank + 1, before))
        if head + 1 < heads:
            heapq.heappush(heap, (cost - table[head + 1][0], len(found), head + 1, 0, cost))
    return found


def by_rank(root_token: int, tokens: npt.NDArray[np.int64], shape: Sequence[tuple[int, int, int]]) -> Tree:
    """The tree of `shape` (from :func:`best_nodes`) with the tokens ``[K, top]`` that the heads propose."""
    return Tree(
        tokens=(root_token, *(int(tokens[head, rank]) for _, head, rank in shape)),
        parents=(-1, *(parent for parent, _, _ in shape)),
    )
