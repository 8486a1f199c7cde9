"""What the API answers, and what it refuses."""

import json

import pytest

CHAT = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "hello"}],
    "temperature": 0,
    "max_tokens": 12,
}
TEXT = {"model": "tiny", "prompt": "hello", "temperature": 0, "max_tokens": 12}
SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["cat", "dog"]}, "small": {"type": "boolean"}},
    "required": ["kind", "small"],
    "additionalProperties": False,
}


def test_models_health_and_metrics(client):
    status, models = client.get("/v1/models")
    assert (status, json.loads(models)["data"][0]["id"]) == (200, "tiny")
    assert client.get("/v1/models/tiny")[0] == 200
    assert client.get("/v1/models/gpt-4")[0] == 404
    assert client.get("/health") == (200, '{"status":"running"}')
    assert client.get("/ready") == (200, '{"ready":true}')
    client.complete("a", temperature=0, max_tokens=30, logit_bias={"70": 100})
    text = client.get("/metrics")[1]
    found = {
        line.partition(" ")[0]: float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line[:1] != "#"
    }
    assert found["lineahead_time_to_first_token_seconds_count"] >= 1
    assert found["lineahead_time_per_output_token_seconds_count"] >= 1
    assert found["lineahead_generated_tokens_total"] >= 30
    assert (
        found['lineahead_drafts_offered_total{position="1"}']
        >= found['lineahead_drafts_accepted_total{position="1"}']
    )
    assert found["lineahead_slots"] == 8
    assert found["lineahead_queue_waiting"] == 0
    assert found['lineahead_http_responses_total{path="/v1/models",status="200"}'] >= 1


def test_the_text_is_the_models_own(client, artifact):
    from lineahead.runtime.generate import Generator
    from lineahead.runtime.sampling import SamplingParams

    generator = Generator.load(artifact, threads=1)
    for prompt, params in (
        ("hello", SamplingParams(max_tokens=12)),
        (
            "some longer prompt of many bytes",
            SamplingParams(max_tokens=20, temperature=0.7, top_p=0.9, seed=5),
        ),
    ):
        expected = generator.generate([prompt], [params])[0]
        found = client.complete(
            prompt,
            max_tokens=params.max_tokens,
            temperature=params.temperature,
            top_p=params.top_p,
            seed=params.seed,
        )
        assert found["choices"][0]["text"] == expected.text
        assert found["usage"]["prompt_tokens"] == expected.prompt_tokens
        assert found["usage"]["completion_tokens"] == len(expected.tokens)
    tokens = generator.chat(CHAT["messages"])
    expected = generator.generate([tokens], SamplingParams(max_tokens=12))[0]
    status, found = client.post("/v1/chat/completions", CHAT)
    assert (status, found["choices"][0]["message"]["content"]) == (200, expected.text)
    assert found["object"] == "chat.completion"


@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)])
def test_streams_say_the_same_as_whole_answers(client, path, body):
    asked = {**body, "n": 2, "seed": 3, "temperature": 0.8}
    whole = client.post(path, asked)[1]
    events = client.events(path, {**asked, "stream_options": {"include_usage": True}})
    texts = ["", ""]
    for event in events[:-1]:
        for choice in event["choices"]:
            texts[choice["index"]] += choice.get("text") or choice.get("delta", {}).get("content") or ""
    kept = [one.get("text", one.get("message", {}).get("content")) for one in whole["choices"]]
    assert texts == kept
    assert kept[0] != kept[1]
    assert events[-1]["choices"] == []
    counts = [one["usage"]["completion_tokens"] for one in (events[-1], whole)]
    assert counts[0] == counts[1] > 12
    reasons = [c["finish_reason"] for event in events for c in event["choices"] if c["finish_reason"]]
    assert sorted(reasons) == sorted(one["finish_reason"] for one in whole["choices"])
    assert len({event["id"] for event in events}) == 1


def test_a_trace_spells_the_text_and_its_drafts(client):
    body = {**TEXT, "logit_bias": {"70": 8, "71": 8}, "max_tokens": 40, "speculation_trace": True}
    events = client.events("/v1/completions", body)
    traced = [event["choices"][0] for event in events]
    pieces = [piece for one in traced for piece in one["speculation"]["pieces"]]
    assert len(pieces) == 40
    assert any(piece["drafted"] for piece in pieces)
    assert "".join(piece["text"] for piece in pieces) in "".join(one["text"] for one in traced)
    plain = client.events("/v1/completions", {**body, "draft_nodes": 0})
    assert "".join(event["choices"][0]["text"] for event in plain) == "".join(one["text"] for one in traced)
    assert not any(
        piece["drafted"] for event in plain for piece in event["choices"][0]["speculation"]["pieces"]
    )


def test_stop_strings_cut_the_text(client):
    text = client.complete("hello", temperature=0, max_tokens=30)["choices"][0]["text"]
    stop = text[5:7]
    found = client.complete("hello", temperature=0, max_tokens=30, stop=[stop, "never there"])["choices"][0]
    assert found["text"] == text[: text.index(stop)]
    assert found["finish_reason"] == "stop"


def test_log_probabilities_in_both_forms(client):
    found = client.complete("hello", temperature=0, max_tokens=5, logprobs=2)["choices"][0]["logprobs"]
    assert len(found["tokens"]) == len(found["token_logprobs"]) == len(found["text_offset"]) == 5
    assert all(len(one) == 2 for one in found["top_logprobs"])
    chat = client.post("/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 3})[1]
    content = chat["choices"][0]["logprobs"]["content"]
    assert len(content) == chat["usage"]["completion_tokens"]
    for one in content:
        assert one["logprob"] == max(top["logprob"] for top in one["top_logprobs"]) <= 0
        assert len(one["top_logprobs"]) == 3


def test_biases_forbid_and_force(client):
    body = {**TEXT, "logit_bias": {"70": 100}, "max_tokens": 4}
    forced = client.post("/v1/completions", body)[1]["choices"][0]["text"]
    assert len(forced) == 4
    assert len(set(forced)) == 1


@pytest.mark.parametrize("seed", range(4))
def test_schemas_are_followed_with_and_without_speculation(client, seed):
    wanted = {"type": "json_schema", "json_schema": {"name": "pet", "schema": SCHEMA, "strict": True}}
    body = {**CHAT, "temperature": 1, "seed": seed, "max_tokens": 80, "response_format": wanted}
    status, found = client.post("/v1/chat/completions", body)
    assert status == 200, found
    text = found["choices"][0]["message"]["content"]
    made = json.loads(text)
    assert made["kind"] in ("cat", "dog")
    assert isinstance(made["small"], bool)
    assert len(made) == 2
    assert found["choices"][0]["finish_reason"] == "stop"
    plain = client.post("/v1/chat/completions", {**body, "draft_nodes": 0})[1]
    assert plain["choices"][0]["message"]["content"] == text


def test_any_object_begins_as_json(client):
    body = {**CHAT, "response_format": {"type": "json_object"}, "max_tokens": 30}
    text = client.post("/v1/chat/completions", body)[1]["choices"][0]["message"]["content"]
    assert text.startswith("{")


UNSUPPORTED = {
    "/v1/chat/completions": (
        "tools",
        "functions",
        "presence_penalty",
        "frequency_penalty",
        "audio",
        "made_up",
        "store",
    ),
    "/v1/completions": ("echo", "suffix", "best_of", "presence_penalty", "response_format"),
}


@pytest.mark.parametrize(
    ("path", "field"), [(path, field) for path, all_ in UNSUPPORTED.items() for field in all_]
)
def test_fields_that_are_not_supported_are_refused_by_name(client, path, field):
    status, found = client.post(path, {**(CHAT if "chat" in path else TEXT), field: 1})
    assert status == 400
    assert found["error"]["param"] == field
    assert field in found["error"]["message"]
    assert found["error"]["type"] == "invalid_request_error"


WRONG = [
    ({"temperature": 3}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"n": 0}, "n"),
    ({"n": 100}, "n"),
    ({"seed": -1}, "seed"),
    ({"stop": ["a"] * 5}, "stop"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 2_000_000}, "max_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens"),
    ({"logit_bias": {"cat": 1}}, "logit_bias"),
    ({"logit_bias": {"300": 1}}, "logit_bias"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"more": 1}}, "stream_options.more"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
        "messages.0.content",
    ),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages.0.content"),
    ({"response_format": {"type": "xml"}}, "response_format"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no"}}}},
        "response_format",
    ),
]


@pytest.mark.parametrize(("change", "param"), WRONG)
def test_wrong_values_are_refused_by_name(client, change, param):
    status, found = client.post("/v1/chat/completions", {**CHAT, **change})
    assert status == 400, found
    assert found["error"]["param"].startswith(param)


def test_another_model_is_not_found(client):
    status, found = client.post("/v1/chat/completions", {**CHAT, "model": "gpt-4"})
    assert (status, found["error"]["code"]) == (404, "model_not_found")


def test_prompts_of_all_kinds(client):
    tokens = [0, 72, 73]
    both = client.complete([tokens, tokens], temperature=0, max_tokens=4)["choices"]
    one = client.complete(tokens, temperature=0, max_tokens=4)["choices"]
    assert [choice["text"] for choice in both] == [one[0]["text"]] * 2
    texts = client.complete(["hello", "you"], temperature=0, max_tokens=4, n=2)["choices"]
    assert [choice["index"] for choice in texts] == [0, 1, 2, 3]
    assert texts[0]["text"] == texts[1]["text"]
    for prompt in ([], [[]], [300], [-1], [1.5], {"a": 1}, None, [["x"]]):
        status, found = client.post("/v1/completions", {**TEXT, "prompt": prompt})
        assert (status, found["error"]["param"].split(".")[0]) == (400, "prompt"), prompt


def test_positions_that_do_not_exist_are_refused(start_server):
    short = start_server(ignore_position_limit=False)
    status, found = short.client.post("/v1/completions", {**TEXT, "prompt": "x" * 200})
    assert status == 400
    assert "positions end at 160" in found["error"]["message"]
    found = short.client.complete("x" * 150, temperature=0, max_tokens=100, logit_bias={"1": -100})
    assert found["choices"][0]["finish_reason"] == "length"
    assert found["usage"]["total_tokens"] == 160


def test_keys_open_the_door(start_server, connect):
    guarded = start_server(settings={"api_keys": ("secret", "other")})
    for key in (None, "wrong", "secre", "secret2"):
        client = connect(guarded.port, key)
        for method, path in (("GET", "/v1/models"), ("POST", "/v1/completions"), ("GET", "/v1/nothing")):
            response = client.send(method, path, b"{" if method == "POST" else None)
            assert response.status == 401
            assert response.headers["WWW-Authenticate"] == "Bearer"
        assert client.get("/health")[0] == 200
    for key in ("secret", "other"):
        assert connect(guarded.port, key).get("/v1/models")[0] == 200


def test_paths_and_methods_that_do_not_exist(client):
    assert client.get("/v1/nothing")[0] == 404
    assert client.get("/v1/completions")[0] == 405
    assert json.loads(client.get("/nothing")[1])["error"]["message"] == "Not Found"
