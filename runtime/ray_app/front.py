"""What takes HTTP requests from Ray's proxy and hands them to replicas."""

import json
import logging
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from lineahead.runtime.ray_app.prefixes import prefix_key
from lineahead.runtime.server.failures import body as failure

logger = logging.getLogger(__name__)
SCOPE = ("type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "headers", "client")
EVENTS = b"text/event-stream; charset=utf-8"
ATTEMPTS = 5
LOST = "the replica that answered has died"


class Front:
    """Chooses nothing itself: the deployment's router does, by the prompt's beginning."""

    def __init__(self, replicas: Any, prefix_characters: int) -> None:
        """Remember where requests go.

        Args:
            replicas: handle of the deployment of :class:`Replica`.
            prefix_characters: of a prompt's beginning, for :func:`prefix_key`.
        """
        self._replicas = replicas.options(stream=True)
        self._characters = prefix_characters

    async def __call__(self, request: Request) -> Response:
        """Answer a request.

        A replica that dies before it has answered anything is no failure: another one is asked. Generation
        has no effects, so that nothing is done twice.
        """
        from ray.exceptions import RayActorError

        body = await request.body()
        scope = {name: request.scope[name] for name in SCOPE if name in request.scope}
        # Ray's proxy may have mounted the application below a prefix, which is not the replica's business.
        scope |= {"path": scope["path"].removeprefix(request.scope.get("root_path", "")), "root_path": ""}
        for attempt in range(ATTEMPTS):
            messages = self._replicas.answer.remote(scope, body, prefix=prefix_key(body, self._characters))
            try:
                start = await anext(messages)
            except RayActorError as error:
                logger.warning("attempt %d: %s", attempt + 1, error)
                continue
            except BaseException:
                messages.cancel()
                raise
            headers = [(bytes(name), bytes(value)) for name, value in start["headers"]]
            events = any(one == (b"content-type", EVENTS) for one in headers)
            response = StreamingResponse(_bodies(messages, events), start["status"])
            response.raw_headers = headers
            return response
        return JSONResponse(failure(503, "no replica answers", code="unavailable"), 503)


async def _bodies(messages: Any, events: bool) -> AsyncIterator[bytes]:
    """The answer; when its replica dies meanwhile, a stream of events ends with the error, others are cut."""
    from ray.exceptions import RayActorError

    try:
        async for message in messages:
            if message["type"] == "http.response.body":
                yield message.get("body", b"")
    except RayActorError as error:
        logger.warning("%s: %s", LOST, error)
        if not events:
            raise
        event = json.dumps(failure(500, LOST, code="replica_lost"))
        yield f"data: {event}\n\ndata: [DONE]\n\n".encode()
    finally:
        messages.cancel()
