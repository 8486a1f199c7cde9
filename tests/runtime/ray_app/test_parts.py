"""What the Ray application is made of, without Ray."""

import asyncio
import json
import os

import pytest

from lineahead.runtime.ray_app.arguments import RayArguments
from lineahead.runtime.ray_app.prefixes import prefix_key, ranked

NAMES = [f"replica-{number}" for number in range(5)]


def chat(*said):
    roles = ("system", "user", "assistant")
    return json.dumps(
        {"messages": [{"role": roles[i % 3], "content": text} for i, text in enumerate(said)]}
    ).encode()


def test_a_conversation_keeps_its_key_and_another_has_its_own():
    first = chat("Be brief.", "Why is the sky blue?" * 20)
    later = chat("Be brief.", "Why is the sky blue?" * 20, "Because.", "And at night?")
    assert prefix_key(first, 256) == prefix_key(later, 256) != ""
    assert prefix_key(first, 256) != prefix_key(chat("Be brief.", "What is a prime?" * 20), 256)


def test_prompts_behind_one_long_system_message_share_a_key():
    system = "You know the following document. " * 20
    assert prefix_key(chat(system, "one"), 256) == prefix_key(chat(system, "two"), 256)
    assert prefix_key(chat(system, "one"), 4096) != prefix_key(chat(system, "two"), 4096)


def test_text_prompts_have_keys_too():
    body = [json.dumps({"prompt": one}).encode() for one in ("hello", ["hello", "bye"], [1, 2], "bye")]
    keys = [prefix_key(one, 256) for one in body]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


@pytest.mark.parametrize("body", [b"", b"[1]", b"{", b"[" * 100_000, b"{}", b'{"messages": 3}', b"\xff"])
def test_bodies_without_a_prompt_have_no_key(body):
    assert prefix_key(body, 256) == ""


def test_a_key_prefers_one_replica_as_long_as_it_has_room():
    (best,), *others = ranked("k", NAMES, {}, 4)
    assert len(others) == 4
    assert ranked("k", NAMES[::-1], {best: 3}, 4)[0] == [best]
    full = ranked("k", NAMES, {best: 4}, 4)
    assert full[0] == others[0]
    assert full[-1] == [best]


def test_only_the_keys_of_a_lost_replica_move():
    keys = [str(number) for number in range(300)]
    before = {key: ranked(key, NAMES, {}, 4)[0] for key in keys}
    after = {key: ranked(key, NAMES[1:], {}, 4)[0] for key in keys}
    assert {key for key in keys if before[key] != after[key]} == {
        key for key in keys if before[key] == [NAMES[0]]
    }
    shares = [sum(found == [name] for found in before.values()) for name in NAMES]
    assert min(shares) > 30


def test_without_a_key_all_free_replicas_are_as_good():
    assert ranked("", NAMES, {NAMES[2]: 9, NAMES[3]: 7}, 4) == [
        [NAMES[0], NAMES[1], NAMES[4]],
        [NAMES[3]],
        [NAMES[2]],
    ]


@pytest.mark.parametrize(
    "wrong", [{"slot": 3}, {"slots": 0}, {"artifact": ""}, {"min_replicas": 5}, {"device": "tpu"}]
)
def test_wrong_arguments_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RayArguments(**{"artifact": "x", **wrong})


@pytest.fixture(scope="module")
def replica(artifact):
    from lineahead.runtime.ray_app.replica import Replica

    arguments = RayArguments(
        artifact=str(artifact), name="tiny", chunk=16, prefill_budget=16, slots=4, threads=1,
        speculate="lookup", ignore_position_limit=True, max_tokens=100_000,
    )  # fmt: skip
    found = Replica(arguments)
    yield found
    found._engine.close(0.0)


def scope(method, path):
    headers = [(b"content-type", b"application/json")]
    return {
        "type": "http", "http_version": "1.1", "method": method, "scheme": "http", "path": path,
        "raw_path": b"", "query_string": b"", "headers": headers, "root_path": "", "client": None,
    }  # fmt: skip


def ask(replica, path, body=None, take=None):
    """Messages of an answer; no more than `take` are read."""

    async def collect():
        found = []
        messages = replica.answer(
            scope("POST" if body else "GET", path), json.dumps(body).encode(), prefix="k"
        )
        async for message in messages:
            found.append(message)
            if len(found) == take:
                break
        await messages.aclose()
        return found

    return asyncio.run(collect())


def test_a_replica_answers_as_the_server_does(replica):
    start, *rest = ask(replica, "/v1/models")
    assert start["status"] == 200
    assert dict(start["headers"])[b"x-replica"].endswith(f":{os.getpid()}".encode())
    assert json.loads(b"".join(one["body"] for one in rest))["data"][0]["id"] == "tiny"


def test_a_replica_streams_and_refuses(replica):
    body = {"model": "tiny", "prompt": "hello", "max_tokens": 12, "temperature": 0.0}
    start, *rest = ask(replica, "/v1/completions", {**body, "stream": True})
    assert dict(start["headers"])[b"content-type"].startswith(b"text/event-stream")
    assert len(rest) > 3
    assert b"".join(one["body"] for one in rest).endswith(b"data: [DONE]\n\n")
    assert ask(replica, "/v1/completions", {**body, "nonsense": 1})[0]["status"] == 400


def test_who_goes_away_frees_the_slot(replica):
    body = {
        "model": "tiny",
        "prompt": "hello",
        "max_tokens": 100_000,
        "stream": True,
        "logit_bias": {"1": -100},
    }
    ask(replica, "/v1/completions", body, take=3)
    for _ in range(200):
        if not replica._engine.statistics().active:
            break
        asyncio.run(asyncio.sleep(0.02))
    assert replica._engine.statistics().active == 0
    assert replica._engine.statistics().finished["cancelled"] == 1
