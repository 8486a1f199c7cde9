"""One cycle after another: admit, read a chunk of a prompt, decode a step. For one thread alone."""

import heapq
import logging
import math
import time
from collections import Counter
from collections.abc import Callable

from lineahead.errors import BackendError, InputError, LineaheadError
from lineahead.runtime.drafters import Drafter, NoDrafter
from lineahead.runtime.engine.batch_governor import BatchGovernor
from lineahead.runtime.engine.fair_queue import FairQueue
from lineahead.runtime.engine.job import Job
from lineahead.runtime.engine.lane import Lane
from lineahead.runtime.engine.observer import Observer
from lineahead.runtime.engine.prefix_cache import PrefixCache
from lineahead.runtime.engine.request import Delta, EngineConfig
from lineahead.runtime.row import Finish, Row
from lineahead.runtime.session import Session
from lineahead.runtime.speculate import Decoder, Event

logger = logging.getLogger(__name__)
HINT = "Ask again; if it fails again, run `lineahead doctor` and `lineahead verify` on the artifact."


class Scheduler:
    """The batch, the lane and the queue.

    Attributes:
        queue: jobs that wait.
        batch: what decodes.
        lane: what reads a prompt.
        cache: states of prompts' beginnings.
        finished: jobs that ended, by reason.
        failed_steps: calls of the model that raised.
        cached_tokens: prompt tokens that came from the cache.
        tokens: generated.
        ended: jobs that ended since somebody last emptied it.
    """

    def __init__(
        self,
        session: Session,
        make_row: Callable[[Job], Row],
        *,
        config: EngineConfig,
        drafter: Drafter | None = None,
        observer: Observer | None = None,
    ) -> None:
        """Take over `session`.

        Args:
            session: the batch's; the lane gets a sibling of it.
            make_row: the sequence of a job.
            config: sizes.
            drafter: what proposes.
            observer: who is told about times.

        Raises:
            InputError: when the session cannot hold so many sequences.
            BackendError: when it cannot move single rows.
        """
        if session.most_rows is not None and config.slots > session.most_rows:
            raise InputError(
                f"{config.slots} slots, but this model was built for {session.most_rows} sequences at once",
                hint=f"Use --slots {session.most_rows}, or build it for more.",
            )
        chunk = min(config.chunk, session.chunk)
        self._make_row, self._config, self._observer = make_row, config, observer or Observer()
        used = drafter or NoDrafter()
        self.governor = BatchGovernor(used.max_nodes) if config.governed and used.max_nodes else None
        self.cache = PrefixCache(config.prefix_cache_bytes, grain=chunk)
        self.lane = Lane(session.sibling(), self.cache, chunk=chunk)
        self.batch = Decoder(session, used, governor=self.governor, isolate=True)
        self.queue: FairQueue[Job] = FairQueue()
        self.finished: Counter[str] = Counter()
        self.failed_steps = self.cached_tokens = self.tokens = 0
        self.ended: list[Job] = []
        self._jobs: dict[int, Job] = {}
        self._deadlines: list[tuple[float, int, Job]] = []

    @property
    def active(self) -> int:
        """Sequences in the batch or being read."""
        return len(self.batch.rows) + (self.lane.row is not None)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self.active and not len(self.queue)

    def enqueue(self, job: Job) -> None:
        """Let a job wait for its turn."""
        self.queue.push(job)
        if job.deadline is not None:
            heapq.heappush(self._deadlines, (job.deadline, job.number, job))

    def cycle(self) -> None:
        """Cut what is late, read prompts within the budget, decode one step."""
        self._expire()
        spent = 0
        while self.lane.row is not None or self._admit():
            if spent and spent + self.lane.next_tokens > self._config.prefill_budget:
                break
            spent += self.lane.next_tokens
            self._read()
        if self.batch.rows:
            self._decode()

    def end(self, job: Job, finish: Finish, error: LineaheadError | None = None) -> None:
        """Take a job out, wherever it is, and tell its client why; nothing happens when it has ended."""
        if job.done:
            return
        if not job.admitted:
            self.queue.discard()
        elif self.lane.row is not None and self.lane.row.request == job.number:
            self.lane.drop()
        else:
            self.batch.cancel(job.number)
        self._close(job, Delta(request=job.number, finish=finish, error=error, cached_tokens=job.cached))

    def end_all(self, finish: Finish, error: LineaheadError | None = None) -> None:
        """End every job."""
        for job in [*self.queue, *self._jobs.values()]:
            self.end(job, finish, error)

    def _expire(self) -> None:
        now = time.monotonic()
        while self._deadlines and self._deadlines[0][0] <= now:
            self.end(heapq.heappop(self._deadlines)[2], "timeout")

    def _admit(self) -> bool:
        """Give the lane the next job, if there is one and a slot for it."""
        while self.active < self._config.slots:
            job = self.queue.pop()
            if job is None:
                return False
            self._observer.queued(time.monotonic() - job.submitted)
            self._jobs[job.number], job.admitted = job, True
            try:
                self.lane.begin(self._make_row(job), scope=job.request.scope)
            except Exception as error:  # whatever goes wrong here is this job's alone
                self.lane.drop()
                self._fail([job], error)
                continue
            job.cached = self.lane.cached
            self.cached_tokens += job.cached
            self.queue.charge(job.key, len(job.request.tokens) - job.cached)
            return True
        return False

    def _read(self) -> None:
        """One call of the lane; a prompt that is through joins the batch."""
        row = self.lane.row
        assert row is not None
        job = self._jobs[row.request]
        try:
            event = self.lane.step()
            if event is not None and not job.done:
                self._deliver(event)  # before its state moves, which takes as long as a step
            if event is not None and self.lane.row is not None:
                joining, saved = self.lane.release()
                self._join(job, joining, lambda: self.batch.join(joining, saved))
        except Exception as error:  # whatever a call raises ends its own requests only
            self.lane.drop()
            self._fail([job], error)

    def _join(self, job: Job, row: Row, place: Callable[[], None]) -> None:
        """Place a sequence; a failure leaves the batch in an unknown state, so that all of it has to end."""
        try:
            place()
        except Exception as error:
            self._fail([*(self._jobs[one.request] for one in self.batch.abandon()), job], error)

    def _decode(self) -> None:
        start = time.perf_counter()
        rows = len(self.batch.rows)
        try:
            events = self.batch.step()
        except Exception as error:  # whatever a call raises ends its own requests only
            self._fail([self._jobs[row.request] for row in self.batch.abandon()], error)
            return
        tokens = sum(len(event.tokens) for event in events)
        self._observer.stepped(rows, tokens, time.perf_counter() - start)
        for event in events:
            self._deliver(event)

    def _deliver(self, event: Event) -> None:
        """Pass on what a step added to one job."""
        job, now = self._jobs[event.request], time.monotonic()
        if job.first is None and event.tokens:
            job.first = now
            self._observer.first_token(now - job.submitted)
        job.tokens += len(event.tokens)
        self.tokens += len(event.tokens)
        self.queue.charge(job.key, len(event.tokens))
        delta = Delta(
            request=event.request,
            tokens=event.tokens,
            text=event.text,
            drafted=event.drafted,
            rejected=event.rejected,
            logprobs=event.logprobs,
            finish=event.finish,
            error=event.error,
            cached_tokens=job.cached,
        )
        if delta.finish:
            self._close(job, delta)
        else:
            job.sink(delta)

    def _fail(self, jobs: list[Job], error: Exception) -> None:
        """End jobs because a call of the model raised."""
        self.failed_steps += 1
        logger.error("a step of %d requests failed: %s: %s", len(jobs), type(error).__name__, error)
        shown = error if isinstance(error, LineaheadError) else None
        shown = shown or BackendError(f"the step failed: {type(error).__name__}: {error}", hint=HINT)
        for job in jobs:
            self._close(job, Delta(request=job.number, finish="error", error=shown, cached_tokens=job.cached))

    def _close(self, job: Job, delta: Delta) -> None:
        """Send the last delta of a job."""
        self._jobs.pop(job.number, None)
        if job.done:
            return
        job.done = True
        self.ended.append(job)
        now = time.monotonic()
        self.finished[str(delta.finish)] += 1
        decode_s = math.nan if job.first is None else now - job.first
        self._observer.finished(str(delta.finish), job.tokens, decode_s, now - job.submitted)
        job.sink(delta)
