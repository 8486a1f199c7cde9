"""One streamed chat, with the time of everything that comes back."""

import http.client
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lineahead.runtime.bench.serving.target import Target


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a client saw of one request. Times are seconds since the load began; NaN where nothing came.

    Attributes:
        due: when it was to be sent.
        sent: when it was sent.
        first: when the first text came.
        last: when the last text came.
        tokens: as the server counts them, else chunks with text.
        counted: whether the server counted.
        error: ``status 429``, ``timeout``, ``connection``, ``cut`` (neither ``[DONE]`` nor a reason to end),
            ``malformed``, ``event CODE``; or empty.
        text: of the answer.
    """

    due: float
    sent: float
    first: float = float("nan")
    last: float = float("nan")
    tokens: int = 0
    counted: bool = False
    error: str = ""
    text: str = ""

    @property
    def ttft_s(self) -> float:
        """From when it was due, so that a server that falls behind cannot hide it, to the first text."""
        return self.first - self.due

    @property
    def tpot_s(self) -> float:
        """Time per token after the first; 0 for a single token."""
        return (self.last - self.first) / (self.tokens - 1) if self.tokens > 1 else 0.0


class _Seen:
    """The answer while it comes."""

    def __init__(self, began: float) -> None:
        self._began = began
        self.first = self.last = float("nan")
        self.chunks = self.counted = 0
        self.pieces: list[str] = []
        self.error = ""
        self.done = self.finished = False

    def now(self) -> float:
        return time.monotonic() - self._began

    def event(self, data: bytes) -> None:
        """One ``data:`` line."""
        if data == b"[DONE]":
            self.done = True
            return
        found = json.loads(data)
        if error := found.get("error"):
            named = error if isinstance(error, dict) else {}
            self.error = f"event {named.get('code') or named.get('type') or 'error'}"
        usage = found.get("usage") or {}
        self.counted = usage.get("completion_tokens", self.counted)
        for choice in found.get("choices") or ():
            piece = (choice.get("delta") or {}).get("content") or ""
            if piece:
                self.last = self.now()
                self.first = self.last if self.chunks == 0 else self.first
                self.chunks += 1
                self.pieces.append(piece)
            if choice.get("finish_reason"):
                self.finished = True  # transformers' server sends no [DONE]
                if not self.chunks:
                    self.first = self.last = self.now()  # an answer may be empty


def ask(target: Target, body: Mapping[str, Any], *, began: float, due: float, timeout_s: float) -> Answer:
    """Send one chat and read its stream to the end; whatever goes wrong is in the answer.

    Args:
        target: the server.
        body: without the model's name and the streaming options.
        began: `time.monotonic()` when the load began.
        due: seconds after it, when this was to be sent.
        timeout_s: longest silence.
    """
    seen = _Seen(began)
    sent = seen.now()
    streaming = {"model": target.model, "stream": True, "stream_options": {"include_usage": True}}
    connection = target.connection(timeout_s)
    try:
        data = json.dumps({**body, **streaming}).encode()
        connection.request("POST", f"{target.path}/v1/chat/completions", data, target.headers)
        with connection.getresponse() as response:
            if response.status == 200:
                while not seen.done and (line := response.readline()):
                    if line.startswith(b"data:"):
                        seen.event(line[5:].strip())
            else:
                response.read()
                seen.error = f"status {response.status}"
    except TimeoutError:
        seen.error = "timeout"
    except (OSError, http.client.HTTPException):
        seen.error = seen.error or ("cut" if seen.chunks else "connection")
    except (ValueError, TypeError, AttributeError):
        seen.error = "malformed"
    finally:
        connection.close()
    if not seen.error and not (seen.done or seen.finished):
        seen.error = "cut"
    return Answer(
        due=due,
        sent=sent,
        first=seen.first,
        last=seen.last,
        tokens=seen.counted or seen.chunks,
        counted=bool(seen.counted),
        error=seen.error,
        text="".join(seen.pieces),
    )
