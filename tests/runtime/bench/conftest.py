"""A server that speaks just enough of OpenAI's API to be measured, and misbehaves on request."""

import http.server
import json
import threading
import time
from types import SimpleNamespace

import pytest


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self.whole(200, {"object": "list", "data": [{"id": "echo"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        how = self.server.how
        with self.server.lock:
            number = len(how.bodies)
            how.bodies.append(body)
        self.answer(how, number)

    def answer(self, how, number):
        if number in how.refused:
            self.whole(429, {"error": {"code": "overloaded"}})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.event({"choices": [{"delta": {"role": "assistant"}}]})
        time.sleep(how.first_s)
        for index in range(how.chunks):
            if index:
                time.sleep(how.next_s)
            if number in how.failed:
                self.event({"error": {"code": "model_failed"}})
                break
            self.event({"choices": [{"delta": {"content": f"w{index} "}}]})
        if how.finish:
            self.event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
        if how.counts:
            self.event({"choices": [], "usage": {"completion_tokens": how.counts}})
        if number not in how.cut:
            self.wfile.write(b"data: [DONE]\n\n")

    def event(self, content):
        self.wfile.write(f"data: {json.dumps(content)}\n\n".encode())
        self.wfile.flush()

    def whole(self, status, content):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def echo():
    """The server: `how` says what it does and remembers what it was asked."""
    how = SimpleNamespace(
        first_s=0.0,
        next_s=0.0,
        chunks=4,
        finish=False,
        counts=None,
        refused=(),
        failed=(),
        cut=(),
        bodies=[],
    )
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.how, server.lock = how, threading.Lock()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield SimpleNamespace(how=how, url=f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    thread.join()
    server.server_close()
