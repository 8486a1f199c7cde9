"""The decoding loop: draft, verify, accept; commit rides in the next step. Plain decoding drafts none."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lineahead.errors import InputError, LineaheadError
from lineahead.runtime.acceptance import Acceptance, Accepted, lossless
from lineahead.runtime.drafters.base import Drafter, DraftRow, StepDrafter
from lineahead.runtime.drafters.nothing import NoDrafter
from lineahead.runtime.governor import Governor
from lineahead.runtime.layout import Part, lay_out
from lineahead.runtime.logprobs import TokenLogprobs, token_logprobs
from lineahead.runtime.row import Finish, Row, RowScores
from lineahead.runtime.session import Ints, RowState, Session, StepInput, StepOutput
from lineahead.runtime.statistics import Statistics
from lineahead.runtime.tree import Tree, chain, root


@dataclass(frozen=True, kw_only=True)
class Event:
    """What one step added to one sequence.

    Attributes:
        request: its number.
        tokens: the new tokens.
        drafted: for each of them, whether a drafter proposed it.
        proposed: how many tokens had been proposed.
        text: text that is now certain (it may lag behind the tokens).
        finish: why the sequence ended, or None.
        rejected: proposed tokens that did not become text, in the order of the proposal.
        logprobs: one per token, where the row asks for them.
        error: what ended the sequence when `finish` is ``error``.
    """

    request: int
    tokens: tuple[int, ...]
    drafted: tuple[bool, ...]
    proposed: int
    text: str
    finish: Finish | None
    rejected: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    error: LineaheadError | None = None


class Decoder:
    """Steps a changing batch of sequences; rows that read their prompt and rows that decode share a call.

    Attributes:
        rows: the sequences in the batch.
        statistics: of everything decoded so far.
    """

    def __init__(
        self,
        session: Session,
        drafter: Drafter | None = None,
        *,
        acceptance: Acceptance = lossless,
        governor: Governor | None = None,
        chunk: int | None = None,
        rows: Sequence[Row] = (),
        isolate: bool = False,
    ) -> None:
        """Take over `session`.

        Args:
            session: emptied, unless `rows` are given.
            drafter: what proposes; None for plain decoding.
            acceptance: what decides; anything but the default may change the output's distribution.
            governor: chooses how many nodes to propose; None proposes all that the drafter offers.
            chunk: prompt tokens per call; the session's own number when None.
            rows: sequences whose first `fed` tokens the session holds already, committed (a loaded or forked
                state); each has more tokens than that.
            isolate: end a row that cannot go on by an event, instead of raising for the whole batch.

        Raises:
            InputError: when they are not what the session holds.
        """
        self.session, self.drafter = session, drafter or NoDrafter()
        self._in_step = self.drafter.in_step if isinstance(self.drafter, StepDrafter) else None
        self.rows: list[Row] = list(rows)
        self.statistics = Statistics()
        self._accept, self._governor, self._chunk = acceptance, governor, chunk
        self._width, self._isolate = 0, isolate
        self._begun = time.perf_counter()
        if not rows:
            session.reset(0)
        elif session.length.tolist() != [row.fed for row in rows] or any(
            row.fed >= len(row.tokens) for row in rows
        ):
            raise InputError(
                f"the session holds {session.length.tolist()} tokens, not {[row.fed for row in rows]}",
                hint="Flush the session before saving its state, and continue with at least one new token.",
            )

    def admit(self, rows: Sequence[Row]) -> None:
        """Add sequences to the batch; they read their prompts in the next steps."""
        self.session.fork([*range(len(self.rows)), *(-1 for _ in rows)])
        sources = {len(self.rows) + i: row.source for i, row in enumerate(rows) if row.source}
        if sources:
            self.session.read(sources)
        self.rows.extend(rows)
        self.statistics.prompt_tokens += sum(len(row.tokens) - row.fed for row in rows)

    def join(self, row: Row, saved: RowState) -> None:
        """Add a sequence with the state that a sibling of the session has read it into."""
        self.session.fork([*range(len(self.rows)), -1])
        self.session.place(len(self.rows), saved)
        self.rows.append(row)
        self._width = max(self._width, len(row.accept))

    def leave(self, request: int) -> RowState:
        """Take a sequence out of the batch without ending it; returns its state, to join another one with."""
        place = next(i for i, row in enumerate(self.rows) if row.request == request)
        row = self.rows[place]
        if row.hidden is not None:
            row.hidden = np.array(row.hidden, np.float32)
        saved = self.session.take(place)
        self._keep([i for i in range(len(self.rows)) if i != place])
        return saved

    def abandon(self) -> list[Row]:
        """Start over without rows, whatever a failed step has left; returns the rows that were there."""
        rows, self.rows = self.rows, []
        self.drafter.forget([row.request for row in rows])
        self.session.reset(0)
        self._width = 0
        return rows

    def run(self) -> Iterator[Event]:
        """Step until every sequence has ended."""
        while self.rows:
            yield from self.step()

    def step(self) -> list[Event]:
        """One call of the model: draft, verify, accept. Returns an event for each sequence that grew."""
        start = time.perf_counter()
        parts, count = self._draft()
        drafted = time.perf_counter()
        inputs = lay_out(parts, [row.accept for row in self.rows], self._width)
        laid_out = time.perf_counter()
        if count:
            parts, output = self._drafted_step(inputs, parts, count)
        else:
            output = self.session.step(inputs)
        verified = time.perf_counter()
        self._width = max(part.longest for part in parts)
        choices = [self._choose(i, part, output) for i, part in enumerate(parts)]
        chosen = time.perf_counter()
        events = [self._take(row, part, choice, output, i) for i, (row, part, choice) in enumerate(
            zip(self.rows, parts, choices, strict=True)
        )]  # fmt: skip
        self._drop_finished()
        times = (drafted - start, laid_out - drafted, verified - laid_out, chosen - verified)
        self._count(parts, times, start)
        return [event for event in events if event is not None]

    def _draft(self) -> tuple[list[Part], int]:
        """The next chunk of rows that read their prompt, a proposal for the others.

        Returns:
            What each row contributes; and, where the session is to draft, how many tokens: the proposals then
            are chains of nothing yet.
        """
        parts: list[Part | None] = [None] * len(self.rows)
        asking: list[int] = []
        chunk = self._chunk or self.session.chunk
        allowed = self.drafter.max_nodes if self._governor is None else self._governor.nodes(len(self.rows))
        allowed = min(allowed, self.session.chunk - 1)  # beside the root
        for i, row in enumerate(self.rows):
            waiting = len(row.tokens) - row.fed
            if waiting > chunk:
                parts[i] = Part(chain=row.tokens[row.fed : row.fed + chunk], tree=None)
            elif waiting > 1 or not allowed or row.useful_depth < 1:
                parts[i] = Part(chain=row.tokens[row.fed :], tree=root(row.tokens[-1]))
            else:
                asking.append(i)
        wanted = [self._question(self.rows[i], allowed) for i in asking]
        count = self._drafted(wanted, parts)
        if count:
            for i, question in zip(asking, wanted, strict=True):
                length = 0 if question.hidden is None else min(count, question.depth, question.nodes)
                tree = chain([question.tokens[-1], *(0 for _ in range(length))])
                parts[i] = Part(chain=(tree.tokens[0],), tree=tree)
        elif asking:
            for i, question, tree in zip(asking, wanted, self.drafter.propose(wanted), strict=True):
                tree = tree.pruned(depth=question.depth, nodes=question.nodes + 1)
                parts[i] = Part(chain=(tree.tokens[0],), tree=tree)
        return [part for part in parts if part is not None], count

    def _drafted(self, wanted: Sequence[DraftRow], parts: Sequence[Part | None]) -> int:
        """How many tokens the session is to draft; none while a row reads its prompt."""
        if self._in_step is None or not wanted or not self.session.most_drafted:
            return 0
        if any(part is not None and (part.tree is None or len(part.chain) > 1) for part in parts):
            return 0
        return min(self._in_step(wanted), self.session.most_drafted)

    def _drafted_step(
        self, inputs: StepInput, parts: Sequence[Part], count: int
    ) -> tuple[list[Part], StepOutput]:
        """A step that drafts; returns the parts with the tokens that it drafted."""
        found: Ints
        found, output = self.session.draft_step(inputs, [row.hidden for row in self.rows], count)
        filled = []
        for part, tokens in zip(parts, found.tolist(), strict=True):
            length = len(part.tree) - 1 if part.tree else 0
            filled.append(replace(part, tree=chain([part.chain[0], *tokens[:length]])))
        return filled, output

    def _question(self, row: Row, nodes: int) -> DraftRow:
        return DraftRow(
            request=row.request,
            tokens=row.tokens,
            hidden=row.hidden,
            depth=row.useful_depth,
            nodes=nodes if row.draft_nodes is None else min(nodes, row.draft_nodes),
            params=row.params,
            random=row.random,
            source=row.source,
        )

    def _choose(self, i: int, part: Part, output: StepOutput) -> Accepted | None:
        """Accept nodes of a tree; None while the prompt is being read."""
        if part.tree is None:
            return None
        row = self.rows[i]
        scores = RowScores(output=output, batch_row=i, row=row, tree=part.tree)
        try:
            return self._accept(part.tree, scores, row.params, row.random)
        except LineaheadError as error:
            if not self._isolate:
                raise
            row.finish, row.error = "error", error
            return None

    def _take(
        self, row: Row, part: Part, choice: Accepted | None, output: StepOutput, i: int
    ) -> Event | None:
        """Bring the row up to date with what was accepted."""
        path = choice.path if choice else ()
        row.accept = part.accept(path)
        row.fed += len(row.accept)
        if row.error is not None:
            return Event(
                request=row.request,
                tokens=(),
                drafted=(),
                proposed=0,
                text="",
                finish="error",
                error=row.error,
            )
        if choice is None or part.tree is None:
            return None
        row.hidden = output.hold(i, path[-1] if path else 0)
        verified = len(part.chain) == 1
        kept, text = row.emit(choice.tokens(part.tree))
        if verified:
            self.statistics.record(part.tree, min(len(path), kept), kept)
        self.statistics.tokens += kept
        if self._governor is not None and verified:
            self._governor.observe(part.tree, len(path))
        return Event(
            request=row.request,
            tokens=tuple(row.tokens[-kept:]),
            drafted=tuple(place < len(path) for place in range(kept)),
            proposed=len(part.tree) - 1,
            text=text,
            finish=row.finish,
            rejected=tuple(part.tree.tokens[node] for node in range(1, len(part.tree)) if node not in path),
            logprobs=_logprobs(row, kept, (0, *path), output, i),
        )

    def _drop_finished(self) -> None:
        """Free the rows of ended sequences."""
        ended = [row.request for row in self.rows if row.finish]
        if not ended:
            return
        self.drafter.forget(ended)
        self._keep([i for i, row in enumerate(self.rows) if not row.finish])

    def _keep(self, going: list[int]) -> None:
        """Go on with these rows; the last of them fill the holes, so that few states are copied."""
        count = len(going)
        spare = [i for i in going if i >= count]
        order = [i if i in going else spare.pop() for i in range(count)]
        self.rows = [self.rows[i] for i in order]
        if order:
            self.session.fork(order)
        else:
            self.session.reset(0)
            self._width = 0

    def cancel(self, request: int) -> None:
        """Drop a sequence now."""
        for row in self.rows:
            if row.request == request:
                row.finish = "cancelled"
        self._drop_finished()

    def _count(self, parts: Sequence[Part], times: tuple[float, float, float, float], start: float) -> None:
        """Book the step's time as prefill when any row read its prompt, else by what it went into."""
        stats, end = self.statistics, time.perf_counter()
        if any(len(part.chain) > 1 or part.tree is None for part in parts):
            stats.prefill_s += end - start
        else:
            draft, _, verify, sampling = times
            stats.steps += 1
            stats.draft_s += draft
            stats.verify_s += verify
            stats.sampling_s += sampling
            stats.other_s += end - start - draft - verify - sampling
            if self._governor is not None:
                self._governor.timed(max(part.nodes for part in parts), draft, end - start - draft)
        if stats.tokens and stats.ttft_s != stats.ttft_s:
            stats.ttft_s = end - self._begun


def _logprobs(
    row: Row, kept: int, nodes: Sequence[int], output: StepOutput, i: int
) -> tuple[TokenLogprobs, ...]:
    """Those of the `kept` new tokens, each scored at the node before it."""
    if row.logprobs is None:
        return ()
    pairs = zip(row.tokens[-kept:], nodes, strict=False)
    return tuple(token_logprobs(output.scores(i, node), token, row.logprobs) for token, node in pairs)


__all__ = ["Decoder", "Event", "Tree"]
