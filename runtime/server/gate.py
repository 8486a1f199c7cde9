"""What a request passes before anything reads it: its key, its size, the time its body takes."""

import asyncio
import hashlib
import hmac
import json
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lineahead.runtime.server.failures import body
from lineahead.runtime.server.settings import ServerSettings

Counted = Callable[[str, int], None]


class Gate:
    """ASGI middleware. ``scope["state"]["key"]`` is a name for who asks, without the key itself."""

    def __init__(self, app: ASGIApp, *, settings: ServerSettings, counted: Counted) -> None:
        """Guard `app`.

        Args:
            app: what is behind.
            settings: limits and keys.
            counted: told path and status of every answer.
        """
        self._app, self._settings, self._counted = app, settings, counted
        self._keys = [key.encode() for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._counted(path, message["status"])
            await send(message)

        headers = Headers(scope=scope)
        key = self._key(headers)
        if key is None and path.startswith("/v1"):
            await _refuse(
                counting, 401, "a valid API key is needed (Authorization: Bearer KEY)", "invalid_api_key"
            )
            return
        scope.setdefault("state", {})["key"] = key or ""
        limit = self._settings.max_body_bytes
        declared = headers.get("content-length", "0")
        if not declared.isascii() or not declared.isdigit() or int(declared) > limit:
            await _refuse(counting, 413, f"the body is larger than {limit} bytes", "body_too_large")
            return
        await self._app(scope, _Body(receive, limit, self._settings.body_timeout_s), counting)

    def _key(self, headers: Headers) -> str | None:
        """A name for the key of a request, the empty one when none is needed, or None when it is wrong."""
        if not self._keys:
            return ""
        kind, _, given = headers.get("authorization", "").partition(" ")
        found = [hmac.compare_digest(given.strip().encode(errors="replace"), one) for one in self._keys]
        if kind.lower() != "bearer" or not any(found):
            return None
        return hashlib.sha256(given.strip().encode()).hexdigest()[:16]


class _Body:
    """A `receive` that counts bytes and watches the clock until the body is complete."""

    def __init__(self, receive: Receive, limit: int, timeout_s: float) -> None:
        self._receive, self._left, self._timeout_s = receive, limit, timeout_s
        self._complete = False
        self._limit = limit

    async def __call__(self) -> Message:
        if self._complete:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), self._timeout_s)
        except asyncio.TimeoutError as error:
            raise HTTPException(408, "the body took too long") from error
        self._complete = message["type"] != "http.request" or not message.get("more_body", False)
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise HTTPException(413, f"the body is larger than {self._limit} bytes")
        return message


async def _refuse(send: Send, status: int, message: str, code: str) -> None:
    content = json.dumps(body(status, message, code=code)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    headers += [(b"connection", b"close")] + [(b"www-authenticate", b"Bearer")] * (status == 401)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
