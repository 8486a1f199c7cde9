"""A real server on loopback over a tiny model, and a client that speaks plain HTTP."""

import contextlib
import http.client
import json
import socket
import threading
import time
from types import SimpleNamespace

import pytest

pytest.importorskip("fastapi", reason="serving is not installed")


class Client:
    """One connection per call; nothing is hidden."""

    def __init__(self, port, key=None):
        self.port = port
        self.headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {key}"} if key else {}
        )

    def send(self, method, path, body=None, headers=None):
        """Status, headers and text of the whole answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = json.dumps(body).encode() if isinstance(body, dict | list) else body
        with contextlib.closing(connection):
            connection.request(method, path, data, {**self.headers, **(headers or {})})
            with connection.getresponse() as response:
                text = response.read().decode()
        return SimpleNamespace(status=response.status, headers=response.headers, text=text)

    def get(self, path):
        found = self.send("GET", path)
        return found.status, found.text

    def post(self, path, body, headers=None):
        found = self.send("POST", path, body, headers)
        return found.status, json.loads(found.text)

    def complete(self, prompt, **options):
        status, found = self.post("/v1/completions", {"model": "tiny", "prompt": prompt, **options})
        assert status == 200, found
        return found

    def events(self, path, body):
        """Data of all events of a stream."""
        response = self.send("POST", path, {**body, "stream": True})
        assert response.status == 200, response.text
        assert response.headers["Content-Type"].startswith("text/event-stream")
        text = response.text
        assert text.endswith("data: [DONE]\n\n")
        return [json.loads(one.removeprefix("data: ")) for one in text.split("\n\n")[:-2]]

    def raw(self, data, wait=10):
        """Send bytes, return all that comes back until the other side closes or is silent."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=wait) as connection:
            connection.sendall(data)
            found = b""
            try:
                while part := connection.recv(65536):
                    found += part
            except TimeoutError:
                pass
        return found


@pytest.fixture(scope="session")
def start_server(artifact):
    """Start a server in this process; returns its client, engine and metrics."""
    from lineahead.runtime.engine import Engine, EngineConfig
    from lineahead.runtime.server.app import create_app
    from lineahead.runtime.server.metrics import Metrics
    from lineahead.runtime.server.run import Server
    from lineahead.runtime.server.settings import ServerSettings

    running = []

    def start(*, settings=None, session=None, drafter="lookup", **config):
        metrics = Metrics()
        config = {
            "chunk": 16,
            "prefill_budget": 16,
            "slots": 8,
            "governed": False,
            "ignore_position_limit": True,
        } | config
        engine = Engine.load(
            artifact,
            config=EngineConfig(**config),
            observer=metrics,
            drafter=drafter,
            draft_nodes=4,
            threads=1,
        )
        if session is not None:
            session(engine.generator.session)
        known = ServerSettings(**{"name": "tiny", "max_tokens": 1_000_000, **(settings or {})})
        app = create_app(engine.start(), known, metrics)
        address = []
        server = Server(app, engine, host="127.0.0.1", port=0, drain_s=1, announce=address.append)
        thread = threading.Thread(target=server.run)
        thread.start()
        while not address:
            time.sleep(0.01)
        running.append((server, engine, thread))
        port = int(address[0].rpartition(":")[2])
        key = known.api_keys[0] if known.api_keys else None
        return SimpleNamespace(
            client=Client(port, key), engine=engine, metrics=metrics, port=port, url=address[0]
        )

    yield start
    for server, engine, thread in running:
        engine.close(0)
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server hangs"


@pytest.fixture(scope="session")
def server(start_server):
    """A server that most tests share."""
    return start_server()


@pytest.fixture
def client(server):
    return server.client


@pytest.fixture
def connect():
    return Client
