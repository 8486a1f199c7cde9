"""One engine in one Ray actor, with the application of ``lineahead serve`` in front of it."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, MutableMapping
from pathlib import Path
from typing import Any

from lineahead.errors import BackendError
from lineahead.runtime.ray_app.arguments import RayArguments

Message = dict[str, Any]


class Replica:
    """Answers HTTP requests that another process has received, by the messages of ASGI."""

    def __init__(self, arguments: RayArguments) -> None:
        """Load the model and start the engine.

        Raises:
            ArtifactError, BackendError, InputError: as ``lineahead serve``.
        """
        from lineahead.runtime.server.app import create_app
        from lineahead.runtime.server.metrics import Metrics
        from lineahead.runtime.server.settings import ServerSettings

        metrics, folder = Metrics(), Path(arguments.artifact)
        self._engine = arguments.open(folder, metrics, threads=int(arguments.cpus))
        settings = ServerSettings(
            name=arguments.name or folder.resolve().name,
            api_keys=arguments.api_keys,
            max_tokens=arguments.max_tokens,
        )
        self._name = f"{socket.gethostname()}:{os.getpid()}".encode()
        self._app = create_app(self._engine.start(), settings, metrics)

    async def answer(self, scope: Message, body: bytes, *, prefix: str = "") -> AsyncIterator[Message]:
        """The application's messages; a consumer that goes away ends the request.

        The header ``X-Replica`` says who answers: host and process.

        Args:
            scope: of ASGI, as far as it can be sent.
            body: of the request.
            prefix: for the router alone.
        """
        sent: asyncio.Queue[Message | None] = asyncio.Queue()
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            if waiting:
                return waiting.pop()
            return await asyncio.Future()  # nothing more comes: who goes away cancels this generator

        async def send(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-replica", self._name)]
            sent.put_nowait(dict(message))

        task = asyncio.ensure_future(self._app(scope, receive, send))
        task.add_done_callback(lambda _: sent.put_nowait(None))
        try:
            while (message := await sent.get()) is not None:
                yield message
            task.result()
        finally:
            task.cancel()
            await asyncio.wait({task})

    def check_health(self) -> None:
        """Called by Serve; a replica that raises here is replaced.

        Raises:
            BackendError: when the engine has failed.
        """
        if not self._engine.alive:
            raise BackendError("the engine has stopped", hint="Look at the replica's log.")

    def __del__(self) -> None:
        """Called by Serve when a replica goes, after its requests have ended."""
        engine = getattr(self, "_engine", None)
        if engine is not None:
            engine.close(0.0)
