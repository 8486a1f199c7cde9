"""uvicorn around the application: where it listens, and how it stops."""

import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from lineahead.runtime.engine.engine import Engine

GRACE_S = 5.0


class Server(uvicorn.Server):
    """Stops in order: no new connections, no new requests, what is running ends or is cut, then the end."""

    def __init__(
        self,
        app: FastAPI,
        engine: Engine,
        *,
        host: str,
        port: int,
        drain_s: float,
        announce: Callable[[str], None],
    ) -> None:
        """Prepare to serve.

        Args:
            app: the application.
            engine: drained when a signal comes.
            host: address to listen at.
            port: port to listen at; 0 takes a free one.
            drain_s: seconds that running requests get after a signal.
            announce: told the address once connections are taken.
        """
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            log_level="warning",
            access_log=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=int(drain_s + GRACE_S) or 1,
            server_header=False,
        )
        super().__init__(config)
        self._engine, self._drain_s, self._announce = engine, drain_s, announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where."""
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            self._announce(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: drain; a second interrupt cuts at once."""
        again = self.should_exit
        super().handle_exit(sig, frame)
        drain_s = 0.0 if again and sig == signal.SIGINT else self._drain_s
        threading.Thread(target=self._engine.close, args=(drain_s,), name="lineahead-drain").start()


def serve(
    app: FastAPI, engine: Engine, *, host: str, port: int, drain_s: float, announce: Callable[[str], None]
) -> None:
    """Serve until a signal comes; arguments as :class:`Server`."""
    server = Server(app, engine, host=host, port=port, drain_s=drain_s, announce=announce)
    try:
        server.run()
    finally:
        engine.close(0.0)
