"""Speculation under load, as the metrics tell it."""

import re
import threading
import time

COUNTS = ("verifications_total", "verified_tokens_total", 'drafts_offered_total{position="1"}')
FORCED = {"logit_bias": {"70": 100.0}, "temperature": 0.0}


def busy(session):
    """A step costs what four nodes cost, and in proportion to rows times nodes from there on."""
    step = session.step

    def slowly(inputs):
        time.sleep(0.002 * max(inputs.input_ids.size, 4))
        return step(inputs)

    session.step = slowly


def counts(client):
    text = client.get("/metrics")[1]
    return [float(re.search(rf"^lineahead_{re.escape(name)} (.+)$", text, re.M)[1]) for name in COUNTS]


def load(client, bodies):
    """Ask all at once: tokens per verification, and the share of verifications that had a draft."""
    before = counts(client)
    asking = [threading.Thread(target=client.complete, args=("x",), kwargs=body) for body in bodies]
    for one in asking:
        one.start()
    for one in asking:
        one.join()
    verified, tokens, drafted = (now - then for now, then in zip(counts(client), before, strict=True))
    return tokens / verified, drafted / verified


def test_the_governor_stops_drafts_where_the_batch_makes_them_lose(start_server):
    client = start_server(session=busy, slots=16, governed=True).client
    client.complete("x", max_tokens=150, **FORCED)
    tokens, drafted = load(client, [{"max_tokens": 200, **FORCED}])
    assert tokens > 1.8  # of 2: what repeats one token is copied a token at a time
    assert drafted > 0.5
    random = [{"max_tokens": 60, "seed": seed} for seed in range(12)]
    crowd = [*random, *[{"max_tokens": 60, **FORCED}] * 4]
    load(client, crowd)
    tokens, drafted = load(client, crowd)
    assert tokens < 1.1
    assert drafted < 0.05
    tokens, drafted = load(client, [{"max_tokens": 200, **FORCED}])
    assert tokens > 1.8, "one client alone gets its drafts again"
    always = start_server(session=busy, slots=16, governed=False).client
    always.complete("x", max_tokens=30, **FORCED)
    assert load(always, crowd)[1] > 0.1
