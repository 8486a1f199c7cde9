"""The command as its own process: signals, and what clients see of them."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

LONG = {"model": "tiny", "prompt": "hello", "temperature": 0, "logit_bias": {"1": -100}, "max_tokens": 4000}

FLAGS = [
    "--name",
    "tiny",
    "--json",
    "--port",
    "0",
    "--threads",
    "1",
    "--ignore-position-limit",
    "--max-tokens",
    "1000000",
]


@pytest.fixture
def spawn(artifact):
    """Start `lineahead serve`; returns the process and its port."""
    started = []

    def start(*options):
        process = subprocess.Popen(
            [sys.executable, "-m", "lineahead.cli", "serve", str(artifact), *FLAGS, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        started.append(process)
        line = process.stdout.readline()
        assert line, process.stderr.read()
        return process, int(json.loads(line)["url"].rpartition(":")[2])

    yield start
    for process in started:
        process.kill()
        process.communicate()


def in_threads(count, call):
    """Results or exceptions of concurrent calls, once all threads have ended."""
    found = [None] * count

    def work(i):
        try:
            found[i] = call(i)
        except (OSError, http.client.HTTPException) as error:
            found[i] = error

    threads = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    for one in threads:
        one.start()
    return threads, found


def active(client):
    line = next(
        one for one in client.get("/metrics")[1].splitlines() if one.startswith("lineahead_slots_active")
    )
    return float(line.split()[1])


def wait_until_active(client, count):
    end = time.monotonic() + 30
    while active(client) < count:
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
def test_sigterm_lets_running_requests_end_and_takes_no_more(spawn, connect):
    process, port = spawn("--drain", "60", "--slots", "4")
    client = connect(port)
    expected = client.post("/v1/completions", LONG)[1]["choices"][0]["text"]
    threads, found = in_threads(3, lambda i: client.post("/v1/completions", LONG))
    wait_until_active(client, 3)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    with pytest.raises(OSError, match=r"refused|reset"):
        connect(port).get("/v1/models")
    for one in threads:
        one.join(60)
        assert not one.is_alive()
    assert [(status, answer["choices"][0]["text"]) for status, answer in found] == [(200, expected)] * 3
    assert process.wait(30) in (0, -signal.SIGTERM)
    assert "Traceback" not in process.stderr.read()


@pytest.mark.slow
def test_sigterm_cuts_what_takes_too_long(spawn, connect):
    process, port = spawn("--drain", "0.5", "--slots", "2")
    client = connect(port)
    endless = {**LONG, "max_tokens": 1_000_000}
    threads, found = in_threads(
        4, lambda i: client.send("POST", "/v1/completions", {**endless, "stream": i == 0})
    )
    wait_until_active(client, 2)
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    for one in threads:
        one.join(20)
        assert not one.is_alive(), "a client hangs"
    process.wait(20)
    assert time.monotonic() - start < 15
    assert {one.status for one in found[1:]} == {503}
    assert found[0].status in (200, 503)
    if found[0].status == 200:
        assert '"code": "cancelled"' in found[0].text
        assert found[0].text.endswith("data: [DONE]\n\n")


@pytest.mark.slow
def test_kill_leaves_no_client_hanging_and_the_next_server_starts(spawn, connect):
    process, port = spawn("--slots", "2")
    client = connect(port)
    threads, found = in_threads(
        6, lambda i: client.post("/v1/completions", {**LONG, "max_tokens": 1_000_000})
    )
    wait_until_active(client, 2)
    process.kill()
    for one in threads:
        one.join(20)
        assert not one.is_alive(), "a client hangs"
    assert all(isinstance(one, Exception) for one in found)
    _, again = spawn("--slots", "2", "--port", str(port))
    assert again == port
    assert connect(again).get("/ready")[0] == 200
