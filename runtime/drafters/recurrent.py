"""The recurrent draft: goes ahead step by step, and grows the tree where its own confidence is highest."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from lineahead.errors import InputError
from lineahead.runtime.drafters.base import DraftRow
from lineahead.runtime.tree import Tree, root

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
BEAM = 4


class Stepper(Protocol):
    """Runs one step of the draft graph."""

    def __call__(self, hidden: Floats, tokens: Ints, /) -> tuple[Floats, Ints, Floats]:
        """``[N, E]`` and ``[N]`` to guesses ``[N, E]``, candidates and log-probabilities ``[N, top]``."""


@dataclass
class _Growth:
    """A tree being grown. Node 0 is the root; `score` is the log-probability of the path."""

    row: int
    limit: int
    tokens: list[int]
    parents: list[int] = field(default_factory=lambda: [-1])
    scores: list[float] = field(default_factory=lambda: [0.0])
    open: list[int] = field(default_factory=lambda: [0])
    features: dict[int, Floats] = field(default_factory=dict)

    def best(self) -> list[int]:
        """The `limit` likeliest nodes below the root, best first; parents come before children."""
        order = sorted(range(1, len(self.tokens)), key=lambda node: (-self.scores[node], node))
        return order[: self.limit]

    def expand(self, node: int, guess: Floats, tokens: Sequence[int], log_probs: Sequence[float]) -> None:
        """Hang the candidates of `node` below it."""
        for token, log_prob in zip(tokens, log_probs, strict=True):
            self.tokens.append(token)
            self.parents.append(node)
            self.scores.append(self.scores[node] + log_prob)
            self.features[len(self.tokens) - 1] = guess

    def choose(self, first: int, beam: int, least: float) -> None:
        """Open the nodes from `first` on that can still have a descendant in the tree."""
        held = set(self.best())
        fresh = [node for node in held if node >= first and self.scores[node] > least]
        self.open = sorted(fresh, key=lambda node: (-self.scores[node], node))[:beam]

    def tree(self, least: float) -> Tree:
        """The tree of the best nodes."""
        kept = [0, *(node for node in self.best() if self.scores[node] > least)]
        place = {node: i for i, node in enumerate(kept)}
        return Tree(
            tokens=tuple(self.tokens[node] for node in kept),
            parents=tuple(place.get(self.parents[node], -1) for node in kept),
        )


class RecurrentDrafter:
    """Grows a tree level by level: the likeliest nodes are stepped from, the likeliest of all are kept.

    A node's score is the product of the draft's probabilities along its path, so no descendant beats its
    ancestor: a node outside the best `max_nodes` of the moment cannot have one inside later, and is not
    stepped from. Growth ends when no such node is left or the depth is reached.

    Source: Li et al., 2024 (EAGLE-2), arXiv:2406.16858, section 4, with the stopping rule added.
    """

    name = "recurrent"

    def __init__(
        self,
        stepper: Stepper,
        *,
        max_nodes: int = 8,
        depth: int = 5,
        branches: int = 4,
        beam: int = BEAM,
        least: float = 0.02,
    ) -> None:
        """Choose the tree.

        Args:
            stepper: runs the draft graph.
            max_nodes: nodes below the root.
            depth: most steps ahead.
            branches: candidates looked at per node; 1 gives a chain.
            beam: nodes stepped from per level.
            least: nodes whose path is less likely than that are left out.

        Raises:
            InputError: when a number is not positive.
        """
        if min(max_nodes, depth, branches, beam) < 1:
            raise InputError(
                f"recurrent draft with {max_nodes} nodes, depth {depth}, {branches} branches, beam {beam}",
                hint="Use at least one of each, or no drafter.",
            )
        self.max_nodes = max_nodes
        self._stepper, self._depth, self._branches, self._beam = stepper, depth, branches, beam
        self._least = float(np.log(least)) if least > 0 else -np.inf

    def propose(self, rows: Sequence[DraftRow]) -> list[Tree]:
        """One tree per row; the root alone where there is no hidden state yet."""
        trees = [root(row.tokens[-1]) for row in rows]
        growing = []
        for i, row in enumerate(rows):
            if row.hidden is not None and min(row.nodes, row.depth) > 0:
                limit = min(row.nodes, self.max_nodes)
                first = np.asarray(row.hidden, np.float32)
                growing.append(_Growth(row=i, limit=limit, tokens=[row.tokens[-1]], features={0: first}))
        for level in range(self._depth):
            asked = [(one, node) for one in growing if level < rows[one.row].depth for node in one.open]
            if not asked:
                break
            self._level(asked)
        for one in growing:
            trees[one.row] = one.tree(self._least)
        return trees

    def _level(self, asked: Sequence[tuple[_Growth, int]]) -> None:
        """One call of the graph for all open nodes of all rows."""
        hidden = np.stack([one.features[node] for one, node in asked])
        tokens = np.array([one.tokens[node] for one, node in asked], np.int64)
        guesses, found, log_probs = self._stepper(hidden, tokens)
        firsts = {id(one): (one, len(one.tokens)) for one, _ in asked}
        count = self._branches
        names, scores = found[:, :count].tolist(), log_probs[:, :count].tolist()
        for (one, node), guess, name, score in zip(asked, guesses, names, scores, strict=True):
            one.expand(node, guess, name, score)
        for one, first in firsts.values():
            one.choose(first, self._beam, self._least)

    def forget(self, requests: Iterable[int]) -> None:
        """Nothing is kept."""
