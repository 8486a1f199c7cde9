"""Prompt lookup and a draft together: one tree of both, or lookup alone while it is right."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from lineahead.runtime.drafters.base import Drafter, DraftRow, StepDrafter
from lineahead.runtime.drafters.lookup import LookupDrafter
from lineahead.runtime.tree import Tree

TRUSTED = 0.8  # share of lookup's first tokens, lately, above which the trained draft is not asked
RECENT = 0.25  # weight of the newest outcome


@dataclass
class _Record:
    """What lookup last proposed to a request, and how often its first token was right lately."""

    length: int = 0
    proposed: tuple[int, ...] = ()
    trust: float = 0.5

    def settle(self, tokens: Sequence[int]) -> None:
        """Compare the last proposal with what the text became."""
        if self.proposed and len(tokens) > self.length:
            hit = tokens[self.length] == self.proposed[0]
            self.trust += RECENT * (hit - self.trust)
        self.proposed = ()


class CombinedDrafter:
    """Merges the chain that lookup finds with the tree of a trained draft, or the chain of a draft model.

    Where lookup finds nothing the whole budget is the trained draft's. Where it does, both share it: prefixes
    that agree are one node. Lookup costs microseconds, so while its first tokens keep being accepted the
    trained draft is not run at all. A draft that the session runs in its own steps is asked only where lookup
    finds nothing.
    """

    name = "auto"

    def __init__(self, lookup: LookupDrafter, trained: Drafter) -> None:
        """Combine two drafters.

        Args:
            lookup: asked first.
            trained: proposes a tree; its `max_nodes` is the budget.
        """
        self._lookup, self._trained = lookup, trained
        self.max_nodes = trained.max_nodes
        self._records: dict[int, _Record] = {}

    def in_step(self, rows: Sequence[DraftRow]) -> int:
        """What a draft of the session's own is asked for where lookup finds nothing for any row."""
        if not isinstance(self._trained, StepDrafter):
            return 0
        if any(len(one) > 1 for one in self._lookup.propose(rows)):
            return 0
        for row in rows:
            self._records.setdefault(row.request, _Record()).settle(row.tokens)
        return self._trained.in_step(rows)

    def propose(self, rows: Sequence[DraftRow]) -> list[Tree]:
        """One tree per row."""
        copied = self._lookup.propose(rows)
        asked = []
        for i, (row, chain) in enumerate(zip(rows, copied, strict=True)):
            record = self._records.setdefault(row.request, _Record())
            record.settle(row.tokens)
            record.length, record.proposed = len(row.tokens), chain.tokens[1:]
            if len(chain) == 1 or record.trust < TRUSTED:
                asked.append(i)
        trees = list(copied)
        wanted = [self._share(rows[i], copied[i]) for i in asked]
        for i, grown in zip(asked, self._trained.propose(wanted) if wanted else [], strict=True):
            budget = min(rows[i].nodes, self.max_nodes)
            trees[i] = merged(copied[i], grown, budget)
        return trees

    def _share(self, row: DraftRow, copied: Tree) -> DraftRow:
        budget = min(row.nodes, self.max_nodes)
        return replace(row, nodes=budget - self._copied_nodes(copied, budget))

    @staticmethod
    def _copied_nodes(copied: Tree, budget: int) -> int:
        """Nodes that lookup gets where both propose: half of the budget at most."""
        return min(len(copied) - 1, budget // 2)

    def forget(self, requests: Iterable[int]) -> None:
        """Drop what is kept of ended requests."""
        gone = list(requests)
        self._lookup.forget(gone)
        self._trained.forget(gone)
        for request in gone:
            self._records.pop(request, None)


def merged(copied: Tree, grown: Tree, budget: int) -> Tree:
    """A tree and as much of a chain from the same root as `budget` nodes below it allow; prefixes are shared.

    A tree whose children were drawn is returned as it is: merging would change what they were drawn from.
    """
    if grown.draws:
        return grown
    tokens, parents = list(grown.tokens), list(grown.parents)
    known = {(parent, token): node for node, (token, parent) in enumerate(zip(tokens, parents, strict=True))}
    node = 0
    for token in copied.tokens[1:]:
        found = known.get((node, token))
        if found is None:
            if len(tokens) > budget:
                break
            tokens.append(token)
            parents.append(node)
            found = len(tokens) - 1
        node = found
    return Tree(tokens=tuple(tokens), parents=tuple(parents))
