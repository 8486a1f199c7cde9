"""What `bench serve` says about a server whose behaviour is known."""

import itertools
import json
import os
import statistics

import pytest

from lineahead.errors import BackendError, InputError
from lineahead.runtime.bench.machine import resident_megabytes
from lineahead.runtime.bench.prompts import read_prompts
from lineahead.runtime.bench.serving.client import Answer
from lineahead.runtime.bench.serving.figures import Targets, figures, percentile
from lineahead.runtime.bench.serving.load import Load, arrivals, closed_load, open_load
from lineahead.runtime.bench.serving.target import open_target

GOOD = Targets(ttft_s=1.0, tpot_s=0.1)


def bodies():
    return ({"messages": [{"role": "user", "content": str(number)}]} for number in itertools.count())


def closed(echo, requests=4, clients=1):
    return closed_load(open_target(echo.url), bodies(), clients=clients, requests=requests, timeout_s=10)


def test_times_of_a_stream_are_those_that_the_server_took(echo):
    echo.how.first_s, echo.how.next_s, echo.how.chunks = 0.08, 0.05, 5
    load = closed(echo, requests=3)
    for answer in load.answers:
        assert 0.08 <= answer.ttft_s < 0.3
        assert 0.02 <= answer.tpot_s < 0.1  # a first token that is read late makes the others seem quick
        assert answer.ttft_s + 4 * answer.tpot_s >= 0.08 + 4 * 0.05
        assert answer.text == "w0 w1 w2 w3 w4 "
    assert load.seconds >= 3 * (0.08 + 4 * 0.05)


def test_tokens_are_the_servers_count_where_it_counts(echo):
    echo.how.counts = 12
    assert figures(closed(echo), GOOD)["tokens_counted_by"] == "server"
    assert figures(closed(echo), GOOD)["tokens_mean"] == 12
    echo.how.counts = None
    found = figures(closed(echo), GOOD)
    assert (found["tokens_mean"], found["tokens_counted_by"]) == (4, "chunks")


def test_every_kind_of_failure_is_counted_and_none_is_good(echo):
    echo.how.refused, echo.how.failed, echo.how.cut = (0,), (1,), (2, 3)
    found = figures(closed(echo, requests=8), GOOD)
    assert found["errors"] == {"status 429": 1, "event model_failed": 1, "cut": 2}
    assert found["good_share"] == 0.5
    assert found["requests"] == 8


@pytest.mark.parametrize("chunks", [0, 4])
def test_an_answer_is_whole_when_it_says_why_it_ends(echo, chunks):
    """transformers' server sends no [DONE]."""
    echo.how.cut, echo.how.finish, echo.how.chunks = (0, 1), True, chunks
    found = figures(closed(echo, requests=2), GOOD)
    assert found["errors"] == {}
    assert found["tokens_mean"] == chunks


def test_a_server_that_is_gone_is_an_error_of_the_connection():
    target = open_target("http://127.0.0.1:9#m")
    load = closed_load(target, bodies(), clients=1, requests=2, timeout_s=5)
    assert [one.error for one in load.answers] == ["connection"] * 2


def test_silence_is_a_timeout(echo):
    echo.how.first_s = 0.5
    load = closed_load(open_target(echo.url), bodies(), clients=1, requests=1, timeout_s=0.1)
    assert [one.error for one in load.answers] == ["timeout"]


def most_at_once(load):
    return max(sum(one.sent <= now.sent < one.last for one in load.answers) for now in load.answers)


def test_clients_wait_for_their_answers_and_arrivals_do_not(echo):
    echo.how.first_s = 0.1
    assert most_at_once(closed(echo, requests=9, clients=3)) == 3
    load = open_load(open_target(echo.url), bodies(), rate=100, seed=0, requests=20, timeout_s=10)
    assert most_at_once(load) > 6
    assert sorted(one.due for one in load.answers) == list(itertools.islice(arrivals(100, 0), 20))
    assert len(load.answers) == 20


def test_arrivals_are_poisson_and_repeatable():
    times = list(itertools.islice(arrivals(5.0, 3), 4000))
    gaps = [after - before for before, after in itertools.pairwise([0.0, *times])]
    assert statistics.mean(gaps) == pytest.approx(0.2, rel=0.05)
    assert statistics.pstdev(gaps) == pytest.approx(0.2, rel=0.05)
    assert (
        times[:9]
        == list(itertools.islice(arrivals(5.0, 3), 9))
        != list(itertools.islice(arrivals(5.0, 4), 9))
    )


def answer(**changes):
    return Answer(**{"due": 1.0, "sent": 1.0, "first": 1.5, "last": 2.5, "tokens": 11, **changes})


def test_goodput_needs_both_times_and_no_error():
    answers = (
        answer(),
        answer(due=0.4, sent=0.4),
        answer(last=2.6),
        answer(error="cut"),
    )
    found = figures(Load(kind="open", offered=2, seconds=2.0, answers=answers), GOOD)
    assert found["goodput_per_s"] == 0.5
    assert found["requests_per_s"] == 1.5
    assert found["tok_per_s"] == 22
    assert found["sent_late_s"] == 0


def test_a_request_sent_late_is_timed_from_when_it_was_due():
    late = answer(due=0.2, sent=1.0)
    found = figures(Load(kind="open", offered=2, seconds=2.0, answers=(late,)), GOOD)
    assert found["ttft_s_p50"] == pytest.approx(1.3)
    assert found["sent_late_s"] == pytest.approx(0.8)


@pytest.mark.parametrize(("share", "value"), [(1, 1), (50, 50), (90, 90), (99, 99), (100, 100)])
def test_percentiles_are_nearest_ranks(share, value):
    assert percentile(range(100, 0, -1), share) == value


def test_other_machines_are_refused_unless_asked_for():
    with pytest.raises(InputError, match="another machine"):
        open_target("http://192.0.2.1:80#m")
    assert open_target("http://192.0.2.1:80#m", remote=True).model == "m"


@pytest.mark.parametrize(
    "text", ["localhost:80", "ftp://localhost", "http://localhost:x#m", "=http://localhost"]
)
def test_malformed_addresses_are_refused(text):
    with pytest.raises(InputError):
        open_target(text)


@pytest.mark.parametrize(
    "content",
    [
        '[{"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "one"}]},'
        ' {"conversations": [{"from": "human", "value": "two"}]}]',
        '{"turns": ["one", "more"]}\n{"prompt": "two"}\n',
        "one\n\ntwo\n",
    ],
    ids=["sharegpt", "json lines", "lines"],
)
def test_prompts_of_every_kind_of_file(tmp_path, content):
    path = tmp_path / "prompts"
    path.write_text(content)
    assert read_prompts(path) == ["one", "two"]
    assert read_prompts(path, 1) == ["one"]


def test_a_line_that_begins_with_a_bracket_is_a_prompt(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("[INST] hello [/INST]\nbye\n")
    assert read_prompts(path) == ["[INST] hello [/INST]", "bye"]


def test_memory_of_a_process_and_of_none():
    assert 10 < resident_megabytes(os.getpid()) < 100_000
    with pytest.raises(InputError, match="no process"):
        resident_megabytes(2**22 + 1)


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("one\ntwo\nthree\n" + "long " * 2000)
    return path


def test_the_command_writes_json_a_table_and_a_plot(run, echo, prompts, tmp_path):
    echo.how.counts = 4
    result = run(
        "bench", "serve", f"first={echo.url}", f"second={echo.url}/v1#other", "--prompts", prompts,
        "--concurrency", 1, "--concurrency", 2, "--requests", 8, "--max-tokens", 7, "--rising",
        "--body", '{"top_p": 0.5}', "--output", tmp_path / "out", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report == json.loads((tmp_path / "out" / "serve.json").read_text())
    points = report["servers"]["first"]["points"]
    assert [(one["load"], one["requests"]) for one in points] == [("closed", 2), ("closed", 8)] + [
        ("open", 8)
    ] * 5
    rates = [one["offered"] for one in points[2:]]
    assert rates == sorted(rates)
    assert (tmp_path / "out" / "serve.png").read_bytes().startswith(b"\x89PNG")
    table = (tmp_path / "out" / "serve.md").read_text().splitlines()[2:]
    assert len(table) == 2 + 14
    assert {one["model"] for one in echo.how.bodies} == {"echo", "other"}
    assert {one["max_tokens"] for one in echo.how.bodies} == {7}
    assert all(one["top_p"] == 0.5 and one["stream"] for one in echo.how.bodies)
    assert {one["messages"][0]["content"] for one in echo.how.bodies} == {"one", "two", "three"}


def test_a_soak_watches_memory(run, echo, prompts, tmp_path):
    echo.how.first_s = 0.02
    result = run(
        "bench", "serve", echo.url, "--prompts", prompts, "--concurrency", 2, "--requests", 20,
        "--soak", 0.03, "--load", 0.5, "--pid", os.getpid(), "--output", tmp_path, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "soak.json").read_text())
    assert found["rate_per_s"] == pytest.approx(found["capacity_per_s"] / 2, rel=1e-3)
    assert len(found["megabytes"]) == len(found["seconds"]) == len(found["ttft_s"]) > 5
    assert found["seconds"][-1] <= 1.8
    assert found["answered"][-1] > found["answered"][0]
    assert found["failed"][-1] == 0


def test_a_server_that_always_fails_is_one_line(run, echo, prompts):
    echo.how.refused = range(1000)
    result = run("bench", "serve", echo.url, "--prompts", prompts)
    assert result.exit_code == BackendError.exit_code
    assert "429" in result.stderr


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--body", "["), "--body"),
        (("--body", "1"), "--body"),
        (("--rate", "0"), "rate"),
        (("--rate", "1", "--rising"), "--rising"),
        (("--longest", "2"), "2 characters"),
        (("--soak", "1", "--pid", 2**22 + 1), "no process"),
        (("--soak", "1", "--rate", "1"), "--soak"),
    ],
)
def test_wrong_options_are_one_line(run, echo, prompts, options, word):
    result = run("bench", "serve", echo.url, "--prompts", prompts, *options)
    assert result.exit_code == InputError.exit_code, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith(("Error", "Hint"))]
    assert word in lines[0]
    assert lines[1].startswith("Hint: ")
