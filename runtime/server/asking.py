"""From a body to requests of the engine, and from their deltas to one stream of choices."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from lineahead.errors import InputError
from lineahead.runtime.constraint import Constraint
from lineahead.runtime.engine.engine import Engine
from lineahead.runtime.engine.request import Delta, Request
from lineahead.runtime.engine.stream import Stream
from lineahead.runtime.grammar import Grammars
from lineahead.runtime.sampling import SamplingParams
from lineahead.runtime.server.failures import RefusedError
from lineahead.runtime.server.schema import (
    ChatRequest,
    CompletionRequest,
    ObjectFormat,
    SchemaFormat,
)
from lineahead.runtime.server.settings import ServerSettings


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Requests of one body, in the order of its choices.

    Attributes:
        requests: for the engine.
        prompt_tokens: summed over prompts (choices of one prompt count once).
    """

    requests: tuple[Request, ...]
    prompt_tokens: int


class Desk:
    """Reads bodies for one engine."""

    def __init__(self, engine: Engine, settings: ServerSettings) -> None:
        """Remember both; grammars are read when they are first needed."""
        self._engine, self._settings = engine, settings
        self._grammars: Grammars | None = None

    def chat(self, asked: ChatRequest, key: str) -> Asked:
        """Requests of a chat; slow for long texts, so not for the event loop's thread.

        Raises:
            InputError, RefusedError: when it cannot be answered.
        """
        if asked.top_logprobs is not None and not asked.logprobs:
            raise _wrong("top_logprobs", "needs logprobs: true")
        if asked.max_tokens is not None and asked.max_completion_tokens is not None:
            raise _wrong("max_tokens", "cannot be given beside max_completion_tokens")
        try:
            tokens = self._engine.generator.chat([one.as_template() for one in asked.messages])
        except InputError as error:
            raise _wrong("messages", str(error)) from error
        return self._asked(asked, [tokens], key, self._limit(asked))

    def completion(self, asked: CompletionRequest, key: str) -> Asked:
        """Requests of a text completion; as :meth:`chat`."""
        try:
            prompts = [self._engine.generator.encode(prompt) for prompt in asked.prompts]
        except InputError as error:
            raise _wrong("prompt", str(error)) from error
        return self._asked(asked, prompts, key, self._limit(asked))

    def _limit(self, asked: ChatRequest | CompletionRequest) -> int:
        most = self._settings.max_tokens
        if asked.limit is not None and asked.limit > most:
            named = "max_completion_tokens" if getattr(asked, "max_completion_tokens", None) else "max_tokens"
            raise _wrong(named, f"is {asked.limit}, this server allows {most}")
        return most if asked.limit is None else asked.limit

    def _asked(
        self, asked: ChatRequest | CompletionRequest, prompts: Sequence[list[int]], key: str, limit: int
    ) -> Asked:
        if asked.model != self._settings.name:
            raise RefusedError(
                404,
                f"no model {asked.model!r} here, only {self._settings.name!r}",
                code="model_not_found",
                param="model",
            )
        if asked.stream_options is not None and not asked.stream:
            raise _wrong("stream_options", "needs stream: true")
        if asked.speculation_trace and not asked.stream:
            raise _wrong("speculation_trace", "needs stream: true")
        if asked.n * len(prompts) > self._settings.max_choices:
            raise _wrong(
                "n",
                f"asks for {asked.n * len(prompts)} choices, this server allows {self._settings.max_choices}",
            )
        params = SamplingParams(
            temperature=asked.temperature,
            top_k=asked.top_k,
            top_p=asked.top_p,
            seed=secrets.randbits(62) if asked.seed is None else asked.seed,
            max_tokens=limit,
            stop=asked.stops,
        )
        bias = self._bias(asked.logit_bias or {})
        requests = [
            Request(
                tokens=tuple(prompt),
                params=params,
                key=f"{key}/{asked.user or ''}",
                stream=choice,
                timeout_s=asked.timeout_s,
                draft_nodes=asked.draft_nodes,
                bias=bias,
                constraint=self._constraint(asked),
                logprobs=asked.wanted_logprobs,
                scope=key if self._settings.private_prefixes else "",
            )
            for prompt in prompts
            for choice in range(asked.n)
        ]
        return Asked(requests=tuple(requests), prompt_tokens=sum(map(len, prompts)))

    def _bias(self, given: dict[str, float]) -> dict[int, float]:
        vocab = self._engine.generator.artifact.vocab_size
        wrong = [one for one in given if not (one.isascii() and one.isdigit() and int(one) < vocab)]
        if wrong:
            raise _wrong("logit_bias", f"{wrong[0]!r} is no token of this model (0 to {vocab - 1})")
        return {int(token): value for token, value in given.items()}

    def _constraint(self, asked: ChatRequest | CompletionRequest) -> Constraint | None:
        wanted = asked.response_format if isinstance(asked, ChatRequest) else None
        if not isinstance(wanted, ObjectFormat | SchemaFormat):
            return None
        self._grammars = self._grammars or Grammars(self._engine.generator.artifact)
        try:
            return self._grammars.json(
                wanted.json_schema.json_schema if isinstance(wanted, SchemaFormat) else None
            )
        except InputError as error:
            raise _wrong("response_format", str(error)) from error


def _wrong(param: str, message: str) -> RefusedError:
    return RefusedError(400, f"{param}: {message}", code="invalid_value", param=param)


class Answers:
    """The choices of one body while they are decoded; leaving ``async with`` cancels what has not ended."""

    def __init__(self, engine: Engine, asked: Asked) -> None:
        """Submit every request, or none.

        Raises:
            OverloadError: when they do not all find a place.
        """
        self.asked = asked
        self._streams: list[Stream] = []
        try:
            for request in asked.requests:
                self._streams.append(engine.submit(request))
        except Exception:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Stop all choices."""
        for stream in self._streams:
            stream.cancel()

    async def __aenter__(self) -> "Answers":
        """Nothing to do."""
        return self

    async def __aexit__(self, *reason: Any) -> None:
        """Stop what has not ended."""
        self.cancel()

    async def deltas(self) -> AsyncIterator[tuple[int, Delta]]:
        """Deltas of all choices as they come, with the number of the choice."""
        merged: asyncio.Queue[tuple[int, Delta]] = asyncio.Queue()

        async def follow(choice: int, stream: Stream) -> None:
            async for delta in stream:
                merged.put_nowait((choice, delta))

        followers = [asyncio.ensure_future(follow(i, one)) for i, one in enumerate(self._streams)]
        try:
            left = len(followers)
            while left:
                choice, delta = await merged.get()
                left -= delta.finish is not None
                yield choice, delta
        finally:
            for one in followers:
                one.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*followers, return_exceptions=True)
