"""Several replicas on this machine under Ray Serve; one is killed under load."""

import collections
import contextlib
import http.client
import itertools
import json
import os
import signal
import socket
import threading
import time

import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'lineahead[serve,ray]'")
pytestmark = [
    pytest.mark.slow,
    # Ray's own sockets, files and loops at its end.
    pytest.mark.filterwarnings("ignore"),
]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def port(artifact):
    from ray import serve

    from lineahead.runtime.ray_app import RayArguments, build

    port = free_port()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    arguments = RayArguments(
        artifact=str(artifact), name="tiny", chunk=16, prefill_budget=16, slots=8, threads=1, replicas=2,
        cpus=0.5, ignore_position_limit=True, max_tokens=100_000, prefix_characters=64,
    )  # fmt: skip
    serve.run(build(arguments), name="lineahead")
    yield port
    serve.shutdown()
    ray.shutdown()


def ask(port, said, **options):
    """Status, replica and body of a chat."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": said}], "max_tokens": 4, **options}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        with connection.getresponse() as response:
            return response.status, response.headers["X-Replica"], response.read()


def await_replicas(port, count):
    """Ask until that many replicas answer; returns who did in the last round."""
    deadline = time.monotonic() + 60
    while len(seen := {ask(port, f"again {number}")[1] for number in range(12)}) < count:
        assert time.monotonic() < deadline, f"only {seen} answer"
        time.sleep(0.5)
    return seen


def test_prompts_go_where_their_beginning_is_known(port):
    await_replicas(port, 2)
    found = collections.defaultdict(set)
    for number in range(16):
        for turn in range(3):
            status, replica, body = ask(port, f"conversation {number} " * 8 + str(turn), temperature=0.0)
            assert status == 200, body
            found[number].add(replica)
            cached = json.loads(body)["usage"]["prompt_tokens_details"]["cached_tokens"]
            assert cached > 0 or turn < 2  # states are kept where two prompts were seen to part
    assert {len(replicas) for replicas in found.values()} == {1}
    assert len(set.union(*found.values())) == 2


def test_statuses_and_streams_pass_through(port):
    assert ask(port, "x", nonsense=1)[0] == 400
    assert ask(port, "x", model="other")[0] == 404
    status, _, body = ask(port, "x", stream=True)
    assert status == 200
    assert body.endswith(b"data: [DONE]\n\n")


def test_a_killed_replica_fails_only_what_it_was_streaming(port):
    from lineahead.runtime.bench.serving.load import open_load
    from lineahead.runtime.bench.serving.target import open_target

    victim = ask(port, "who is there")[1]
    streaming = {"max_tokens": 60, "temperature": 0.0, "logit_bias": {"1": -100}}
    bodies = (
        {"messages": [{"role": "user", "content": f"{number} and more"}], **streaming}
        for number in itertools.count()
    )
    killer = threading.Timer(3.0, os.kill, (int(victim.rpartition(":")[2]), signal.SIGKILL))
    killer.start()
    load = open_load(
        open_target(f"http://127.0.0.1:{port}#tiny"), bodies, rate=8, seed=1, seconds=10, timeout_s=60
    )
    killer.join()
    before = [one for one in load.answers if one.last < 3.0]
    failed = [one for one in load.answers if one.error]
    assert len(load.answers) > 50
    assert before
    assert all(one.error == "event replica_lost" for one in failed), failed
    # Nothing that was sent after the kill, or had ended before it, has failed.
    assert all(one.sent < 3.5 and one.first < 3.5 for one in failed)
    assert victim not in await_replicas(port, 2)
