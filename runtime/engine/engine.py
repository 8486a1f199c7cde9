"""The engine: a model in a thread of its own that any number of clients share."""

import asyncio
import itertools
import logging
import threading
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

from lineahead.errors import InputError, LineaheadError, OverloadError
from lineahead.runtime.artifact import read_artifact
from lineahead.runtime.drafters import Drafter
from lineahead.runtime.engine.job import Job, Sink
from lineahead.runtime.engine.observer import EngineStatistics, Observer
from lineahead.runtime.engine.request import EngineConfig, Request
from lineahead.runtime.engine.scheduler import Scheduler
from lineahead.runtime.engine.stream import Outbox, Stream
from lineahead.runtime.generate import Generator
from lineahead.runtime.row import Row
from lineahead.runtime.sampling import stream as random_stream
from lineahead.runtime.tokenizer import TextStream

logger = logging.getLogger(__name__)


class Engine:
    """Continuous batching over one model. Every method may be called from any thread.

    ``submit`` is for asyncio: it returns a :class:`Stream` of deltas, or raises at once when the request
    cannot be taken. ``post`` is the same with a callback. ``drain`` ends gracefully.

    Example::

        engine = Engine.load("artifacts/smollm2", precision="int4", config=EngineConfig(slots=16))
        engine.start()
        async with engine.submit(Request(tokens=(1, 2, 3))) as stream:
            async for delta in stream:
                print(delta.text, end="")
        await engine.drain(timeout_s=10)

    Attributes:
        generator: the loaded model: artifact, tokenizer, session.
        config: sizes.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        config: EngineConfig | None = None,
        drafter: Drafter | None = None,
        observer: Observer | None = None,
    ) -> None:
        """Take over the generator's session; :meth:`start` begins to work.

        Args:
            generator: a loaded model, not to be used otherwise from now on.
            config: sizes.
            drafter: what proposes; the generator's own when None.
            observer: who is told about times, in the engine's thread.

        Raises:
            BackendError: when the backend cannot move single rows.
        """
        self.generator, self.config = generator, config or EngineConfig()
        self._limit = generator.position_limit(ignore=self.config.ignore_position_limit)
        self._scheduler = Scheduler(
            generator.session,
            self._row,
            config=self.config,
            drafter=drafter or generator.drafter,
            observer=observer,
        )
        self._numbers = itertools.count()
        self._arrived: deque[Job] = deque()
        self._cancelled: deque[int] = deque()
        self._jobs: dict[int, Job] = {}
        self._outbox = Outbox()
        self._wake = threading.Condition()
        self._state = "running"
        self._submitted = self._refused = 0
        self._service_s = 1.0
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="lineahead-engine", daemon=True)

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        config: EngineConfig | None = None,
        observer: Observer | None = None,
        **options: Any,
    ) -> "Engine":
        """Open an artifact folder; `options` are those of :meth:`Generator.load`.

        Raises:
            ArtifactError: when a file is missing, or the model is no decoder.
            BackendError: when the backend is not usable here, or cannot move single rows.
        """
        read_artifact(Path(folder)).require_decoder("serving")
        return cls(Generator.load(folder, **options), config=config, observer=observer)

    def start(self) -> "Engine":
        """Begin to work; returns itself."""
        self._thread.start()
        return self

    @property
    def alive(self) -> bool:
        """Whether the engine's thread runs."""
        return self._thread.is_alive() and self._failure is None

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return self.alive and self._state == "running"

    def submit(self, request: Request) -> Stream:
        """Queue a request; to be called in the event loop that reads the result.

        Raises:
            InputError: when the prompt is empty, too long or not the model's.
            OverloadError: when the queue is full, or the engine is draining.
        """
        stream = Stream(self.cancel)
        stream.number = self.post(request, lambda delta: self._outbox.add(stream, delta))
        return stream

    def post(self, request: Request, sink: Sink) -> int:
        """Queue a request whose deltas go to `sink`, called in the engine's thread; returns its number.

        Raises:
            InputError, OverloadError: as :meth:`submit`.
        """
        self._check(request)
        timeout = self.config.default_timeout_s if request.timeout_s is None else request.timeout_s
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._wake:
            waiting = len(self._scheduler.queue) + len(self._arrived)
            if self._state != "running" or self._failure is not None:
                self._refused += 1
                raise OverloadError(
                    "the engine takes no more requests", hint="Ask another server.", retry_after_s=0
                )
            if waiting >= self.config.queue:
                self._refused += 1
                wait_s = min(max(self._service_s * waiting / self.config.slots, 1.0), 60.0)
                raise OverloadError(
                    f"{waiting} requests are waiting already",
                    hint=f"Try again in {wait_s:.0f} seconds.",
                    retry_after_s=wait_s,
                )
            job = Job(number=next(self._numbers), request=request, sink=sink, deadline=deadline)
            self._submitted += 1
            self._jobs[job.number] = job
            self._arrived.append(job)
            self._wake.notify()
        return job.number

    def cancel(self, number: int) -> None:
        """Stop a request wherever it is; one that has ended, or never was, is left alone."""
        with self._wake:
            if number in self._jobs:
                self._cancelled.append(number)
                self._wake.notify()

    async def drain(self, timeout_s: float | None = None) -> None:
        """Take no more requests, let those that are here end, cut them at the deadline, and stop."""
        await asyncio.get_running_loop().run_in_executor(None, self.close, timeout_s)

    def close(self, timeout_s: float | None = 0.0) -> None:
        """As :meth:`drain`, for other threads: waits until the engine has stopped."""
        with self._wake:
            if self._state == "running":
                self._state = "draining"
            self._wake.notify()
        if not self._thread.ident:
            return
        self._thread.join(timeout_s)
        with self._wake:
            self._state = "stopped"
            self._wake.notify()
        self._thread.join()

    def statistics(self) -> EngineStatistics:
        """Counts so far."""
        scheduler, decoded = self._scheduler, self._scheduler.batch.statistics
        return EngineStatistics(
            state="failed" if self._failure is not None else self._state,
            slots=self.config.slots,
            active=scheduler.active,
            waiting=len(scheduler.queue) + len(self._arrived),
            queue=self.config.queue,
            submitted=self._submitted,
            refused=self._refused,
            finished=dict(scheduler.finished),
            failed_steps=scheduler.failed_steps,
            prompt_tokens=scheduler.lane.prompt_tokens,
            cached_tokens=scheduler.cached_tokens,
            tokens=scheduler.tokens,
            steps=decoded.steps,
            row_steps=decoded.row_steps,
            row_tokens=decoded.row_tokens,
            draft_nodes=scheduler.governor.chosen
            if scheduler.governor
            else scheduler.batch.drafter.max_nodes,
            offered_at=tuple(decoded.offered_at),
            accepted_at=tuple(decoded.accepted_at),
            prefix_cache=replace(scheduler.cache.statistics),
        )

    def _check(self, request: Request) -> None:
        self.generator.encode(request.tokens)
        if self._limit is not None and len(request.tokens) >= self._limit:
            raise InputError(
                f"the prompt has {len(request.tokens)} tokens, the model's positions end at {self._limit}",
                hint="Shorten it.",
            )
        wrong = [one for one in request.bias if not 0 <= one < self.generator.artifact.vocab_size]
        if wrong:
            raise InputError(f"logit_bias names token {wrong[0]}", hint="Use tokens of this model.")

    def _row(self, job: Job) -> Row:
        request, generator = job.request, self.generator
        tokens = list(request.tokens)
        return Row(
            request=job.number,
            tokens=tokens,
            prompt=len(tokens),
            params=request.params,
            random=random_stream(request.params, request.stream),
            eos=generator.artifact.eos,
            limit=self._limit,
            text=TextStream(generator.tokenizer, tokens, request.params.stop),
            draft_nodes=request.draft_nodes,
            bias=request.bias,
            constraint=request.constraint,
            logprobs=request.logprobs,
        )

    def _run(self) -> None:
        """The engine's thread."""
        scheduler = self._scheduler
        try:
            while self._collect():
                scheduler.cycle()
                self._outbox.flush()
                self._forget()
            scheduler.end_all("cancelled")
        except BaseException as error:  # a bug: nobody may wait for a thread that is gone
            logger.exception("the engine's thread failed")
            self._failure = error
            scheduler.end_all("error", LineaheadError(f"the engine failed: {error}"))
            raise
        finally:
            self._outbox.flush()

    def _collect(self) -> bool:
        """Take in what has come, waiting while there is nothing to do; False when it is time to stop."""
        scheduler = self._scheduler
        with self._wake:
            while True:
                arrived, self._arrived = self._arrived, deque()
                cancelled, self._cancelled = self._cancelled, deque()
                for job in arrived:
                    scheduler.enqueue(job)
                if cancelled or not scheduler.idle or self._state == "stopped":
                    break
                if self._state == "draining":
                    return False
                self._wake.wait()
        for number in cancelled:
            wanted = self._jobs.get(number)
            if wanted is not None:
                scheduler.end(wanted, "cancelled")
        self._outbox.flush()
        self._forget()
        return self._state != "stopped"

    def _forget(self) -> None:
        """Drop jobs that have ended, and learn how long one takes."""
        ended, self._scheduler.ended = self._scheduler.ended, []
        for job in ended:
            del self._jobs[job.number]
            if job.first is not None:
                self._service_s += 0.1 * (time.monotonic() - job.first - self._service_s)
