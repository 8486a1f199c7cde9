"""Bad clients, bad bodies, a full queue, a failing model: right statuses, and nobody else notices."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

TEXT = {"model": "tiny", "prompt": "hello", "temperature": 0, "max_tokens": 40}
NO_EOS = {"1": -100}


def head(path, length):
    fields = ["Host: x", "Content-Type: application/json", f"Content-Length: {length}", "Connection: close"]
    return "\r\n".join([f"POST {path} HTTP/1.1", *fields, "", ""]).encode()


def eventually(condition, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


BODIES = [
    b"",
    b"{",
    b"[1, 2",
    b"null",
    b"[]",
    b'"text"',
    b"\xff\xfe\x00",
    b'{"model": "tiny", "prompt": "a", "temperature": NaN}',
    b'{"model": "tiny", "prompt": "a", "temperature": 1e999}',
    b'{"model": "tiny", "prompt": "a", "\\ud800": 1}',
    b'{"model": "tiny", "prompt": "\\ud800"}',
    b'{"model": "tiny", "prompt": ' + b"[" * 50_000,
    b'{"model": "tiny", "prompt": "a", "seed": ' + b"9" * 5000 + b"}",
]


@pytest.mark.parametrize("number", range(len(BODIES)))
def test_malformed_bodies_get_400(client, number):
    status, found = client.post("/v1/completions", BODIES[number])
    assert status == 400
    assert found["error"]["type"] == "invalid_request_error"


def test_other_content_types_get_400(client):
    body = json.dumps(TEXT).encode()
    assert client.post("/v1/completions", body, {"Content-Type": "text/plain"})[0] in (200, 400)
    assert (
        client.post("/v1/completions", b"model=tiny", {"Content-Type": "application/x-www-form-urlencoded"})[
            0
        ]
        == 400
    )


def test_oversized_and_slow_bodies(start_server):
    strict = start_server(settings={"max_body_bytes": 2000, "body_timeout_s": 0.5})
    client = strict.client
    assert b" 413 " in client.raw(head("/v1/completions", 10**9))[:20]
    assert b" 413 " in client.raw(head("/v1/completions", 2001) + b"x" * 2001)[:20]
    chunk = b"400\r\n" + b"x" * 1024 + b"\r\n"
    chunked = (
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        + chunk * 3
    )
    assert b" 413 " in client.raw(chunked)[:20]
    start = time.monotonic()
    assert b" 408 " in client.raw(head("/v1/completions", 100) + b'{"model"')[:20]
    assert time.monotonic() - start < 5
    assert b" 400 " in client.raw(b"nonsense\r\n\r\n")[:20]
    assert client.post("/v1/completions", TEXT)[0] == 200


def test_clients_that_vanish_free_their_slots_and_change_nobodys_text(server, client):
    expected = client.complete(**{k: v for k, v in TEXT.items() if k != "model"})["choices"][0]["text"]
    endless = json.dumps({**TEXT, "max_tokens": 1_000_000, "logit_bias": NO_EOS, "stream": True}).encode()
    before = server.engine.statistics().finished.get("cancelled", 0)

    def vanish(streamed):
        body = endless if streamed else endless.replace(b'"stream": true', b'"stream": false')
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.sendall(head("/v1/completions", len(body)) + body)
            if streamed:
                connection.recv(4096)
            else:
                time.sleep(0.2)

    with ThreadPoolExecutor(8) as pool:
        gone = [pool.submit(vanish, i % 2 == 0) for i in range(12)]
        texts = [pool.submit(client.post, "/v1/completions", TEXT) for _ in range(8)]
        for one in gone:
            one.result(60)
        for one in texts:
            status, found = one.result(60)
            assert (status, found["choices"][0]["text"]) == (200, expected)
    assert eventually(lambda: server.engine.statistics().active == 0), server.engine.statistics()
    assert server.engine.statistics().finished["cancelled"] - before == 12


def test_slow_readers_hold_up_nobody(server, client):
    body = json.dumps({**TEXT, "max_tokens": 3000, "logit_bias": NO_EOS, "stream": True}).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.settimeout(60)
        connection.sendall(head("/v1/completions", len(body)) + body)
        start = time.monotonic()
        for _ in range(5):
            assert client.post("/v1/completions", TEXT)[0] == 200
        assert time.monotonic() - start < 20
        assert eventually(lambda: server.engine.statistics().active == 0, 60)
        found = b""
        while part := connection.recv(1 << 16):
            found += part
    assert b"data: [DONE]" in found
    assert found.count(b"data: ") > 1000


def test_a_full_queue_answers_429_with_a_time(start_server):
    small = start_server(slots=1, queue=2)
    endless = {**TEXT, "max_tokens": 1_000_000, "logit_bias": NO_EOS, "timeout_s": 20}
    threads = [
        threading.Thread(target=small.client.post, args=("/v1/completions", endless)) for _ in range(3)
    ]
    for waiting, one in enumerate(threads):
        one.start()
        assert eventually(lambda: small.engine.statistics().active == 1)
        assert eventually(lambda n=waiting: small.engine.statistics().waiting == n)
    response = small.client.send("POST", "/v1/completions", TEXT)
    assert response.status == 429
    assert int(response.headers["Retry-After"]) >= 1
    assert json.loads(response.text)["error"]["code"] == "queue_full"
    too_many = small.client.post("/v1/completions", {**TEXT, "n": 5})
    assert too_many[0] == 429
    assert small.engine.statistics().waiting == 2
    small.engine.close(0)
    for one in threads:
        one.join(20)
        assert not one.is_alive()
    assert small.client.get("/ready")[0] == 503
    assert small.client.post("/v1/completions", TEXT)[0] == 503


def test_deadlines_answer_504_and_end_streams_with_an_error(server, client):
    late = {**TEXT, "max_tokens": 1_000_000, "logit_bias": NO_EOS, "timeout_s": 0.3}
    status, found = client.post("/v1/completions", late)
    assert (status, found["error"]["code"]) == (504, "timeout")
    events = client.events("/v1/completions", late)
    assert events[-1]["error"]["code"] == "timeout"
    assert "".join(event["choices"][0]["text"] for event in events[:-1])
    assert eventually(lambda: server.engine.statistics().active == 0)


def poisoned(when):
    """Make steps of rows that hold the token 299 fail in a way."""

    def change(session):
        step = type(session).step

        def failing(inputs):
            output = step(session, inputs)
            bad = np.flatnonzero((inputs.input_ids == 299).any(1))
            return when(output, bad) if len(bad) else output

        session.step = failing

    return change


def raising(output, bad):
    raise RuntimeError("the device is gone")


def not_numbers(output, bad):
    for row in bad:
        output.logits[row] = np.nan
    return output


@pytest.mark.parametrize("when", [raising, not_numbers])
def test_a_failing_model_is_a_500_for_its_own_request_only(start_server, when):
    failing = start_server(session=poisoned(when), drafter="none")
    good = {**TEXT, "logit_bias": {"299": -100}}
    expected = failing.client.post("/v1/completions", good)[1]["choices"][0]["text"]
    # The bias makes the model write the token that the batch's next step then fails on.
    bad = {**TEXT, "prompt": "q", "logit_bias": {"299": 100}}
    status, found = failing.client.post("/v1/completions", bad)
    assert (status, found["error"]["code"]) == (500, "backend_error")
    events = failing.client.events("/v1/completions", bad)
    assert events[-1]["error"]["code"] == "backend_error"
    if when is not_numbers:
        with ThreadPoolExecutor(6) as pool:
            right = [pool.submit(failing.client.post, "/v1/completions", good) for _ in range(12)]
            wrong = [pool.submit(failing.client.post, "/v1/completions", bad) for _ in range(6)]
            assert {one.result(60)[0] for one in wrong} == {500}
            assert {one.result(60)[1]["choices"][0]["text"] for one in right} == {expected}
    assert failing.client.post("/v1/completions", good)[1]["choices"][0]["text"] == expected
    assert failing.client.get("/health")[0] == 200


def test_concurrent_texts_are_those_of_single_requests(start_server):
    fresh = start_server(slots=4)
    bodies = [
        {
            **TEXT,
            "prompt": f"prompt {i} " * (1 + i % 5),
            "temperature": 0.9 * (i % 2),
            "seed": i,
            "max_tokens": 20 + i,
        }
        for i in range(24)
    ]
    alone = [fresh.client.post("/v1/completions", body)[1]["choices"][0]["text"] for body in bodies]
    with ThreadPoolExecutor(24) as pool:
        together = list(pool.map(lambda body: fresh.client.post("/v1/completions", body), bodies))
    assert [found["choices"][0]["text"] for _, found in together] == alone
