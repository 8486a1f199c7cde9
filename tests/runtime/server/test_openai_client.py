"""The official client against the server."""

import pytest

openai = pytest.importorskip("openai", reason="the openai client is not installed")


@pytest.fixture(scope="module")
def official(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=60) as client:
        yield client


MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]


def test_a_session(official):
    assert [model.id for model in official.models.list()] == ["tiny"]
    answer = official.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        temperature=0,
        max_completion_tokens=10,
        logprobs=True,
        top_logprobs=2,
    )
    text = answer.choices[0].message.content
    assert text
    assert answer.usage.completion_tokens == len(answer.choices[0].logprobs.content)
    stream = official.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        temperature=0,
        max_tokens=10,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens
    again = official.completions.create(model="tiny", prompt="hello", n=2, seed=1, max_tokens=8, logprobs=1)
    same = official.completions.create(model="tiny", prompt="hello", n=2, seed=1, max_tokens=8, logprobs=1)
    assert [one.text for one in again.choices] == [one.text for one in same.choices]
    assert again.choices[0].text != again.choices[1].text


def test_structured_answers(official):
    from pydantic import BaseModel

    class Pet(BaseModel):
        small: bool
        legs: bool

    parsed = official.chat.completions.parse(
        model="tiny", messages=MESSAGES, max_tokens=80, response_format=Pet
    )
    assert isinstance(parsed.choices[0].message.parsed, Pet)


def test_errors_are_the_clients_own(official):
    with pytest.raises(openai.NotFoundError):
        official.chat.completions.create(model="gpt-4", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError, match="presence_penalty is not supported"):
        official.chat.completions.create(model="tiny", messages=MESSAGES, presence_penalty=1)


def test_leaving_a_stream_early(official, server):
    before = server.engine.statistics().finished.get("cancelled", 0)
    with official.completions.create(
        model="tiny", prompt="hello", max_tokens=500_000, stream=True, logit_bias={"1": -100}
    ) as stream:
        next(iter(stream))
    import time

    for _ in range(200):
        if server.engine.statistics().finished.get("cancelled", 0) > before:
            return
        time.sleep(0.05)
    raise AssertionError("still decoding")
