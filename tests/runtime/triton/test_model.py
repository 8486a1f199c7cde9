"""The model of Triton's Python backend, with a stand-in for Triton."""

import json
import time

import pytest

from lineahead.runtime.generate import Generator
from lineahead.runtime.sampling import SamplingParams

GREEDY = {"temperature": [0.0], "max_tokens": [12]}


@pytest.fixture(scope="module")
def expected(artifact):
    """The text of a prompt alone."""
    generator = Generator.load(artifact, threads=1)

    def text(prompt):
        tokens = generator.chat(prompt) if isinstance(prompt, list) else prompt
        events = generator.stream([tokens], SamplingParams(max_tokens=12), ignore_position_limit=True)
        return "".join(event.text for event in events)

    return text


def ask(model, request):
    model.execute([request])
    return request.sender.all()


def test_one_response_holds_the_text_of_the_prompt_alone(model, request_of, expected):
    (found,) = ask(model, request_of(text_input=[b"hello"], **GREEDY))
    assert found.error is None
    assert found.values["text_output"][0].decode() == expected("hello")
    assert found.values["token_ids"].size == 12
    assert found.values["finish_reason"][0] == b"length"


def test_streamed_responses_add_up_to_it(model, request_of, expected):
    found = ask(model, request_of(text_input=[b"hello"], stream=[True], **GREEDY))
    assert len(found) > 6
    assert "".join(one.values["text_output"][0].decode() for one in found) == expected("hello")
    assert [one.values["finish_reason"][0] for one in found] == [b""] * (len(found) - 1) + [b"length"]


def test_many_requests_of_one_call_share_the_batch(model, request_of, expected):
    prompts = [f"prompt {number}" for number in range(9)]
    requests = [request_of(text_input=[one.encode()], stream=[True], **GREEDY) for one in prompts]
    model.execute(requests)
    for prompt, request in zip(prompts, requests, strict=True):
        text = "".join(one.values["text_output"][0].decode() for one in request.sender.all())
        assert text == expected(prompt)


def test_chats_use_the_template(model, request_of, expected):
    messages = [{"role": "user", "content": "hello"}]
    (found,) = ask(model, request_of(messages=[json.dumps(messages).encode()], **GREEDY))
    assert found.values["text_output"][0].decode() == expected(messages)


def test_seeds_repeat_and_stops_stop(model, request_of):
    sampled = [
        ask(model, request_of(text_input=[b"x"], temperature=[1.5], seed=[seed], max_tokens=[20]))[0]
        for seed in (3, 3, 4)
    ]
    texts = [one.values["token_ids"].tolist() for one in sampled]
    assert texts[0] == texts[1] != texts[2]
    whole = ask(model, request_of(text_input=[b"hello"], **GREEDY))[0].values["text_output"][0].decode()
    (cut,) = ask(model, request_of(text_input=[b"hello"], stop=[whole[4:6].encode()], **GREEDY))
    assert cut.values["finish_reason"][0] == b"stop"
    assert cut.values["text_output"][0].decode() == whole[: whole.index(whole[4:6])]


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({}, "text_input or messages"),
        ({"text_input": [b"a"], "messages": [b"[]"]}, "exactly one"),
        ({"text_input": [b"\xff"]}, "UTF-8"),
        ({"text_input": [b"a"], "temperature": [-1.0]}, "temperature"),
        ({"text_input": [b"a"], "max_tokens": [1_000_000]}, "allows"),
        ({"messages": [b"[1]"]}, "chat"),
        ({"messages": [b"{"]}, "messages"),
    ],
)
def test_wrong_requests_are_refused_alone(model, request_of, values, word):
    good = request_of(text_input=[b"hello"], **GREEDY)
    wrong = request_of(**values)
    model.execute([wrong, good])
    (found,) = wrong.sender.all()
    assert word in str(found.error)
    assert found.error.code == "INVALID_ARG"
    assert good.sender.all()[-1].error is None


def test_who_goes_away_frees_the_slot(model, request_of):
    request = request_of(text_input=[b"hello"], stream=[True], max_tokens=[100_000], temperature=[0.9])
    model.execute([request])
    request.sender.sent.get(timeout=60)
    request.sender.cancelled = True
    deadline = time.monotonic() + 30
    while model._engine.statistics().active:
        assert time.monotonic() < deadline, "the slot is not freed"
        time.sleep(0.02)
    while not request.sender.ended:  # the engine tells it after the slot is free
        assert time.monotonic() < deadline, "the response is not ended"
        time.sleep(0.02)
