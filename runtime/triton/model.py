"""The model of Triton's Python backend: requests go to the engine, deltas come back as responses.

Decoupled: `execute` returns at once, and every step of the engine answers every request that it advanced.
"""

import json
import logging
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lineahead.errors import InputError, LineaheadError, OverloadError
from lineahead.runtime.engine.options import EngineOptions
from lineahead.runtime.engine.request import Delta, Request
from lineahead.runtime.sampling import SamplingParams
from lineahead.runtime.triton.signature import INPUTS

logger = logging.getLogger(__name__)
ARTIFACT = "artifact"
BAD = ("cancelled", "timeout", "error")


class TritonPythonModel:
    """Named and shaped as Triton wants it; ``1/model.py`` of the repository imports it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the artifact beside ``model.py``, with the options that are the configuration's parameters.

        Args:
            args: of Triton: ``model_config``, ``model_repository``, ``model_version``.
        """
        import triton_python_backend_utils as backend

        self._backend = backend
        given = json.loads(args["model_config"]).get("parameters", {})
        options = EngineOptions(**{name: value["string_value"] for name, value in given.items()})
        folder = Path(args["model_repository"]) / args["model_version"] / ARTIFACT
        self._most = options.max_tokens
        self._engine = options.open(folder).start()

    def execute(self, requests: Sequence[Any]) -> None:
        """Take requests; a wrong one is answered with its error, alone."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                asked, streamed = self._read(request)
                Answer(self._backend, sender, self._engine.cancel, streamed).begin(self._engine.post, asked)
            except LineaheadError as error:
                refuse(self._backend, sender, error)
            except Exception as error:  # one that left here would end Triton's whole process
                logger.exception("a request failed")
                refuse(self._backend, sender, LineaheadError(f"{type(error).__name__}: {error}"))

    def finalize(self) -> None:
        """Stop the engine; Triton waits for running requests before it calls this."""
        self._engine.close(0.0)

    def _read(self, request: Any) -> tuple[Request, bool]:
        """The engine's request, and whether its answer comes in pieces."""
        values = {one.name: _values(self._backend, request, one.name) for one in INPUTS}
        single = {name: found[0] for name, found in values.items() if name != "stop" and found}
        generator = self._engine.generator
        if ("text_input" in single) == ("messages" in single):
            raise InputError("give text_input or messages", hint="Give exactly one of them.")
        if "messages" in single:
            tokens = generator.chat(_messages(single["messages"]))
        else:
            tokens = generator.encode(single["text_input"])
        most = int(single.get("max_tokens", self._most))
        if most > self._most:
            raise InputError(f"max_tokens={most}, this server allows {self._most}", hint="Ask for fewer.")
        params = SamplingParams(
            max_tokens=most,
            temperature=float(single.get("temperature", 1.0)),
            top_p=float(single.get("top_p", 1.0)),
            top_k=int(single.get("top_k", 0)),
            seed=int(single.get("seed", secrets.randbits(62))),
            stop=tuple(values["stop"]),
        )
        nodes = single.get("draft_nodes")
        asked = Request(
            tokens=tuple(tokens), params=params, draft_nodes=None if nodes is None else int(nodes)
        )
        return asked, bool(single.get("stream", False))


class Answer:
    """Turns one request's deltas into responses, in the engine's thread."""

    def __init__(self, backend: Any, sender: Any, cancel: Callable[[int], None], streamed: bool) -> None:
        """Prepare to answer.

        Args:
            backend: Triton's module.
            sender: of the request.
            cancel: tells the engine that nobody waits any more.
            streamed: whether every delta is sent, or one response at the end.
        """
        self._backend, self._sender, self._cancel, self._streamed = backend, sender, cancel, streamed
        self._text: list[str] = []
        self._tokens: list[int] = []

    def begin(self, post: Callable[[Request, Callable[[Delta], None]], int], asked: Request) -> None:
        """Submit the request."""
        post(asked, self.take)

    def take(self, delta: Delta) -> None:
        """What the engine calls with every delta."""
        if delta.finish in BAD:
            why = delta.error or LineaheadError(f"the request ended: {delta.finish}")
            refuse(self._backend, self._sender, why)
            return
        if self._sender.is_cancelled() and delta.finish is None:
            self._cancel(delta.request)
            return
        self._text.append(delta.text)
        self._tokens += delta.tokens
        if self._streamed or delta.finish is not None:
            self._send(delta.finish or "")

    def _send(self, finish: str) -> None:
        values = {
            "text_output": np.array(["".join(self._text).encode()], np.object_),
            "token_ids": np.array(self._tokens, np.int32),
            "finish_reason": np.array([finish.encode()], np.object_),
        }
        self._text, self._tokens = [], []
        tensors = [self._backend.Tensor(name, value) for name, value in values.items()]
        response = self._backend.InferenceResponse(output_tensors=tensors)
        self._sender.send(response, flags=self._backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL if finish else 0)


def refuse(backend: Any, sender: Any, error: LineaheadError) -> None:
    """End a request with an error."""
    kind = {InputError: backend.TritonError.INVALID_ARG, OverloadError: backend.TritonError.UNAVAILABLE}
    code = kind.get(type(error), backend.TritonError.INTERNAL)
    message = f"{error} {error.hint}" if error.hint else str(error)
    response = backend.InferenceResponse(error=backend.TritonError(message, code))
    sender.send(response, flags=backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _values(backend: Any, request: Any, name: str) -> list[Any]:
    """An input's elements; none when it was not given."""
    tensor = backend.get_input_tensor_by_name(request, name)
    found = [] if tensor is None else tensor.as_numpy().reshape(-1).tolist()
    try:
        return [one.decode() if isinstance(one, bytes) else one for one in found]
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8: {error}", hint="Send text as UTF-8.") from error


def _messages(text: str) -> list[dict[str, str]]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"messages: {error}", hint="Send a JSON array of {role, content}.") from error
    good = isinstance(found, list) and all(
        isinstance(one, dict)
        and set(one) == {"role", "content"}
        and all(isinstance(v, str) for v in one.values())
        for one in found
    )
    if not good or not found:
        raise InputError("messages are no chat", hint="Send a JSON array of {role, content}.")
    return list(found)
