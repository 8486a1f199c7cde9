"""Another model as the draft: a smaller one, the same one in fewer bits, or its linear twin."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from lineahead.errors import InputError
from lineahead.runtime.drafters.base import DraftRow
from lineahead.runtime.layout import Part, lay_out
from lineahead.runtime.session import RowState, Session, StepOutput
from lineahead.runtime.tree import Tree, chain

Floats = npt.NDArray[np.float32]


@dataclass
class _Followed:
    """How far the draft model has read one sequence.

    Attributes:
        fed: tokens in its state; the last of them, `ahead`, are guesses that it has gone on from.
        pending: tokens of its last call, which follow those.
        accept: how many of them become state in the next call.
        ahead: guesses in the state, which nobody has verified yet.
        saved: the state before them, with the first of them pending.
    """

    fed: int = 0
    pending: Sequence[int] = ()
    accept: int = 0
    ahead: list[int] = field(default_factory=list)
    saved: RowState | None = None

    def wrong(self, tokens: Sequence[int]) -> bool:
        """Whether the text has become another one than the guesses in the state."""
        start = self.fed - len(self.ahead)
        return len(tokens) <= self.fed or list(tokens[start : self.fed]) != self.ahead

    def go_back(self) -> RowState:
        """Forget the guesses but the first, which is pending again; returns the state to put back."""
        assert self.saved is not None
        self.fed, self.pending = self.fed - len(self.ahead), (self.ahead[0],)
        return self.saved

    def agree(self, tokens: Sequence[int]) -> None:
        """Keep what the text has in common with the last call; the last token is always read again."""
        self.ahead, self.saved = [], None
        most = min(len(self.pending), len(tokens) - 1 - self.fed)
        self.accept = next(
            (i for i in range(most) if self.pending[i] != tokens[self.fed + i]),
            max(most, 0),
        )


@dataclass
class _Guess:
    """The chain that grows for one sequence; `score` is the log-probability of all of it."""

    row: DraftRow
    limit: int
    tokens: list[int] = field(default_factory=list)
    score: float = 0.0
    open: bool = True

    def take(self, logits: Floats, least: float) -> None:
        """Add the likeliest next token, if the chain stays likely enough."""
        best = int(logits.argmax())
        self.score -= float(np.log(np.exp(logits - logits[best]).sum(dtype=np.float64)))
        if self.score < least:
            self.open = False
            return
        self.tokens.append(best)
        self.open = len(self.tokens) < self.limit


class ModelDrafter:
    """Writes a chain with a second model that has the same vocabulary.

    The draft model goes on from its own guesses, one token a call. Before the first of them becomes state the
    row is copied, and put back when the text has become another one; what is right of the last call is
    committed by the next. A chain ends where its probability under the draft model falls below `least`.

    Source: Leviathan et al., 2023, arXiv:2211.17192, for the draft model; the proposals are chosen, not
    drawn, so that `acceptance.lossless` needs no draft distribution.
    """

    name = "model"

    def __init__(self, session: Session, *, max_nodes: int = 4, least: float = 0.02) -> None:
        """Take over `session`.

        Args:
            session: of the draft model; emptied.
            max_nodes: longest chain.
            least: probability of a chain below which it is not made longer.

        Raises:
            InputError: when `max_nodes` is not positive.
        """
        if max_nodes < 1:
            raise InputError(
                f"draft model with max_nodes={max_nodes}", hint="Use at least one node, or no drafter."
            )
        self.max_nodes = max_nodes
        self._session, self._least = session, float(np.log(least)) if least > 0 else -np.inf
        self._followed: dict[int, _Followed] = {}
        session.reset(0)

    def propose(self, rows: Sequence[DraftRow]) -> list[Tree]:
        """One chain per row; the root alone where the draft model is not sure of any token."""
        guesses = {
            row.request: _Guess(row=row, limit=min(row.nodes, row.depth, self.max_nodes))
            for row in rows
            if min(row.nodes, row.depth) > 0
        }
        if guesses:
            self._admit([request for request in guesses if request not in self._followed])
            self._read(guesses)
            while any(one.open for one in guesses.values()):
                self._extend(guesses)
        proposed = (guesses.get(row.request) for row in rows)
        return [
            chain([row.tokens[-1], *(one.tokens if one else ())])
            for row, one in zip(rows, proposed, strict=True)
        ]

    def forget(self, requests: Iterable[int]) -> None:
        """Drop the sequences' rows."""
        gone = set(requests)
        kept = [place for place, request in enumerate(self._followed) if request not in gone]
        if len(kept) == len(self._followed):
            return
        self._followed = {name: one for name, one in self._followed.items() if name not in gone}
        if kept:
            self._session.fork(kept)
        else:
            self._session.reset(0)

    def _admit(self, requests: Sequence[int]) -> None:
        if requests:
            self._session.fork([*range(len(self._followed)), *(-1 for _ in requests)])
            self._followed.update({request: _Followed() for request in requests})

    def _read(self, guesses: Mapping[int, _Guess]) -> None:
        """Bring the draft model to the end of every text, in chunks; all texts end in the last call."""
        for place, (request, followed) in enumerate(self._followed.items()):
            if request in guesses:
                tokens = guesses[request].row.tokens
                if followed.ahead and followed.wrong(tokens):
                    self._session.place(place, followed.go_back())
                followed.agree(tokens)
        size = self._session.chunk
        calls = {
            request: -(-(len(one.row.tokens) - self._position(request)) // size)
            for request, one in guesses.items()
        }
        for left in range(max(calls.values()), 0, -1):
            parts = {}
            for request, one in guesses.items():
                if calls[request] >= left:
                    start = self._position(request)
                    parts[request] = one.row.tokens[start : start + size]
            output = self._call(parts)
            for request, part in parts.items():
                self._followed[request].accept = len(part)
        self._choose(guesses, output)

    def _extend(self, guesses: Mapping[int, _Guess]) -> None:
        """One more token for every open chain; a guess pending elsewhere stays so: it is read again."""
        parts: dict[int, Sequence[int]] = {}
        for place, (request, followed) in enumerate(self._followed.items()):
            one = guesses.get(request)
            if one is None or not one.open:
                if followed.pending and not followed.accept:
                    parts[request] = followed.pending
                continue
            parts[request] = one.tokens[-1:]
            if len(one.tokens) > 1:
                if followed.saved is None:
                    followed.saved = self._session.take(place)
                followed.ahead.append(one.tokens[-2])
            followed.accept = len(followed.pending)
        output = self._call(parts)
        self._choose(guesses, output)

    def _position(self, request: int) -> int:
        one = self._followed[request]
        return one.fed + one.accept

    def _call(self, chains: Mapping[int, Sequence[int]]) -> StepOutput:
        """Commit what is accepted, then read one chain per row; a row without one reads some node."""
        parts = [Part(chain=chains.get(request, (0,)), tree=None) for request in self._followed]
        accepts = [range(one.accept) for one in self._followed.values()]
        output = self._session.step(lay_out(parts, accepts, max(map(len, accepts), default=0)))
        for request, one in self._followed.items():
            one.fed += one.accept
            one.pending, one.accept = tuple(chains.get(request, ())), 0
        return output

    def _choose(self, guesses: Mapping[int, _Guess], output: StepOutput) -> None:
        for place, request in enumerate(self._followed):
            one = guesses.get(request)
            if one is not None and one.open:
                one.take(output.scores(place, 0), self._least)
