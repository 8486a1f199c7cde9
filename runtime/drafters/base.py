"""What a drafter is."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from lineahead.runtime.sampling import SamplingParams
from lineahead.runtime.session import Hidden
from lineahead.runtime.tree import Tree


@dataclass(frozen=True, kw_only=True)
class DraftRow:
    """One sequence that wants a proposal.

    Attributes:
        request: number of the request; state that a drafter keeps per sequence is kept under it.
        tokens: the text so far; the last token is the root of the tree, and has not been through the model.
            Not to be kept or changed: it grows between calls.
        hidden: ``[E]`` float32, the model's hidden state at the token before the root; one on a device is
            fetched when NumPy reads it.
        depth: longest useful path below the root.
        nodes: most nodes below the root.
        params: how the request is sampled; a drafter that draws truncates its distribution with them.
        random: the request's random stream, for drafters that draw.
        source: what an encoder-decoder has read; empty for other models.
    """

    request: int
    tokens: Sequence[int]
    hidden: Hidden | None
    depth: int
    nodes: int
    params: SamplingParams
    random: np.random.Generator
    source: Sequence[int] = ()


class Drafter(Protocol):
    """Proposes a tree per sequence. Adding one: CONTRIBUTING, "add a drafter"."""

    @property
    def name(self) -> str:
        """What reports call it."""

    @property
    def max_nodes(self) -> int:
        """Most nodes below the root that it ever proposes."""

    def propose(self, rows: Sequence[DraftRow]) -> list[Tree]:
        """One tree per row, rooted at its last token; the root alone when there is nothing to propose."""

    def forget(self, requests: Iterable[int]) -> None:
        """Drop what is kept for requests that have ended."""


@runtime_checkable
class StepDrafter(Drafter, Protocol):
    """A drafter whose proposals a session can draft itself, within the step that verifies them."""

    def in_step(self, rows: Sequence[DraftRow]) -> int:
        """How long a chain :meth:`Session.draft_step` is to draft for these rows; 0 to be asked by `propose`.

        The session may draft less. A row gets no more of it than its `depth` and `nodes` allow.
        """
