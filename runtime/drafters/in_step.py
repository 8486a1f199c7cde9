"""A draft that the session runs itself, in the call that verifies it: where one device holds both."""

from collections.abc import Iterable, Sequence

from lineahead.errors import InputError
from lineahead.runtime.drafters.base import DraftRow
from lineahead.runtime.tree import Tree, root

DEPTH = 5  # steps ahead, as for trees


class InStepDrafter:
    """Asks for chains of the recurrent draft's best tokens, which :meth:`Session.draft_step` makes.

    Such a chain is a proposal that was chosen, not drawn, so sampling stays exact without the draft's
    probabilities. Nothing is proposed in steps in which a row reads its prompt, or the session cannot draft.
    """

    name = "recurrent"

    def __init__(self, *, max_nodes: int = DEPTH) -> None:
        """Choose the chain.

        Args:
            max_nodes: longest chain; at most DEPTH is used.

        Raises:
            InputError: when `max_nodes` is not positive.
        """
        if max_nodes < 1:
            raise InputError(f"a draft of {max_nodes} tokens", hint="Use at least one, or no drafter.")
        self.max_nodes = min(max_nodes, DEPTH)

    def in_step(self, rows: Sequence[DraftRow]) -> int:
        """How many tokens the next step is to draft, 0 for none; as :class:`base.StepDrafter`."""
        ready = [row for row in rows if row.hidden is not None and min(row.nodes, row.depth) > 0]
        return min(self.max_nodes, max((row.nodes for row in ready), default=0))

    def propose(self, rows: Sequence[DraftRow]) -> list[Tree]:
        """Roots: for steps that cannot draft."""
        return [root(row.tokens[-1]) for row in rows]

    def forget(self, requests: Iterable[int]) -> None:
        """Nothing is kept."""
