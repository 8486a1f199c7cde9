"""The JSON objects of answers: chats and text completions, whole and in chunks."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lineahead.runtime.engine.request import Delta
from lineahead.runtime.logprobs import TokenLogprobs
from lineahead.runtime.tokenizer import UNFINISHED, TextStream, Tokenizer

FINISH = {"eos": "stop", "stop": "stop", "length": "length", "context": "length"}
Json = dict[str, Any]


@dataclass
class Choice:
    """What has come of one choice.

    Attributes:
        index: its number.
        text: so far.
        tokens: how many.
        offset: characters of `text` that `logprobs` of a text completion have accounted for.
        logprobs: of all tokens.
        finish: OpenAI's reason, once it has ended.
    """

    index: int
    text: str = ""
    tokens: int = 0
    offset: int = 0
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish: str | None = None


class Writer:
    """Objects of one answer; subclasses know the two kinds.

    Attributes:
        choices: of the answer.
    """

    whole = chunk = prefix = ""

    def __init__(
        self,
        *,
        model: str,
        choices: int,
        tokenizer: Tokenizer,
        logprobs: bool,
        prompt_tokens: int,
        trace: bool,
    ) -> None:
        """Start an answer.

        Args:
            model: its name.
            choices: how many there will be.
            tokenizer: spells single tokens.
            logprobs: whether they were asked for.
            prompt_tokens: of the prompts.
            trace: whether chunks say what had been proposed.
        """
        self.choices = [Choice(index) for index in range(choices)]
        self._model, self._tokenizer, self._logprobs = model, tokenizer, logprobs
        self._prompt_tokens, self._trace = prompt_tokens, trace
        self._cached: dict[int, int] = {}
        self._spelled = [TextStream(tokenizer, ()) for _ in self.choices] if trace else []
        self._id, self._created = f"{self.prefix}-{secrets.token_hex(12)}", int(time.time())

    def take(self, choice: int, delta: Delta) -> None:
        """Book what a step added."""
        one = self.choices[choice]
        one.text += delta.text
        one.tokens += len(delta.tokens)
        one.logprobs += delta.logprobs
        self._cached[choice] = delta.cached_tokens
        one.finish = FINISH.get(delta.finish or "")

    @property
    def usage(self) -> Json:
        """Token counts."""
        made = sum(one.tokens for one in self.choices)
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": made,
            "total_tokens": self._prompt_tokens + made,
            "prompt_tokens_details": {"cached_tokens": min(sum(self._cached.values()), self._prompt_tokens)},
        }

    def _object(self, kind: str, choices: list[Json], **more: Any) -> Json:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "choices": choices,
            **more,
        }

    def answer(self) -> Json:
        """The whole answer."""
        return self._object(self.whole, [self._whole(one) for one in self.choices], usage=self.usage)

    def first(self) -> list[Json]:
        """Chunks before the first text."""
        return []

    def next(self, choice: int, delta: Delta) -> Json:
        """The chunk of one delta, after :meth:`take`."""
        made = self._part(self.choices[choice], delta)
        if self._trace:
            made["speculation"] = {
                "pieces": [
                    {"text": self._spelled[choice].push([token]), "drafted": drafted}
                    for token, drafted in zip(delta.tokens, delta.drafted, strict=True)
                ],
                "rejected": [self._spell(token) for token in delta.rejected],
            }
        return self._object(self.chunk, [made])

    def counts(self) -> Json:
        """The chunk that ends a stream whose client wants counts."""
        return self._object(self.chunk, [], usage=self.usage)

    def _spell(self, token: int) -> str:
        return self._tokenizer.decode([token], special=True)

    def _name(self, token: int) -> str:
        """The token's text; one that is part of a character only is named by its number."""
        text = self._spell(token)
        return f"token_id:{token}" if UNFINISHED in text else text

    def _whole(self, one: Choice) -> Json:
        raise NotImplementedError

    def _part(self, one: Choice, delta: Delta) -> Json:
        raise NotImplementedError


class ChatWriter(Writer):
    """``chat.completion``."""

    whole, chunk, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def first(self) -> list[Json]:
        """Each choice says whose turn it is."""
        start = {"role": "assistant", "content": ""}
        return [
            self._object(
                self.chunk, [{"index": one.index, "delta": start, "logprobs": None, "finish_reason": None}]
            )
            for one in self.choices
        ]

    def _whole(self, one: Choice) -> Json:
        message = {"role": "assistant", "content": one.text, "refusal": None}
        logprobs = self._content(one.logprobs)
        return {"index": one.index, "message": message, "logprobs": logprobs, "finish_reason": one.finish}

    def _part(self, one: Choice, delta: Delta) -> Json:
        content = {"content": delta.text} if delta.text or not delta.finish else {}
        return {
            "index": one.index,
            "delta": content,
            "logprobs": self._content(delta.logprobs),
            "finish_reason": one.finish,
        }

    def _content(self, found: Sequence[TokenLogprobs]) -> Json | None:
        if not self._logprobs:
            return None
        return {"content": [self._scored(one) for one in found], "refusal": None}

    def _scored(self, one: TokenLogprobs) -> Json:
        top = [self._entry(token, logprob) for token, logprob in one.top]
        return {**self._entry(one.token, one.logprob), "top_logprobs": top}

    def _entry(self, token: int, logprob: float) -> Json:
        text, name = self._spell(token), self._name(token)
        return {"token": name, "logprob": logprob, "bytes": list(text.encode()) if name == text else None}


class TextWriter(Writer):
    """``text_completion``."""

    whole = chunk = "text_completion"
    prefix = "cmpl"

    def _whole(self, one: Choice) -> Json:
        one.offset = 0
        logprobs = self._lists(one, one.logprobs)
        return {"index": one.index, "text": one.text, "logprobs": logprobs, "finish_reason": one.finish}

    def _part(self, one: Choice, delta: Delta) -> Json:
        logprobs = self._lists(one, delta.logprobs)
        return {"index": one.index, "text": delta.text, "logprobs": logprobs, "finish_reason": one.finish}

    def _lists(self, one: Choice, found: Sequence[TokenLogprobs]) -> Json | None:
        if not self._logprobs:
            return None
        offsets = []
        for score in found:
            offsets.append(one.offset)
            one.offset += len(self._spell(score.token))
        return {
            "tokens": [self._name(score.token) for score in found],
            "token_logprobs": [score.logprob for score in found],
            "top_logprobs": [{self._name(token): value for token, value in score.top} for score in found],
            "text_offset": offsets,
        }
