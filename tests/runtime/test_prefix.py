"""A text read once: its state in a file, continued on any backend, forked, refused by other models."""

import json

import pytest

from lineahead.errors import ArtifactError, InputError
from lineahead.runtime.drafters import LookupDrafter
from lineahead.runtime.generate import Generator
from lineahead.runtime.prefix import chat_parts, continue_prefix, read_prefix, save_prefix
from lineahead.runtime.sampling import SamplingParams

DOCUMENT = "the cat sat on the mat; the dog sat on the log; the cat sat"


@pytest.fixture(scope="module")
def generator(artifact):
    return Generator.load(artifact, implementation="function", threads=1)


@pytest.fixture(scope="module")
def saved(generator, tmp_path_factory):
    """The document's tokens and its file."""
    tokens = generator.encode(DOCUMENT)
    path = tmp_path_factory.mktemp("saved") / "document.state"
    read_prefix(generator, tokens, chunk=16)
    save_prefix(generator, tokens, path)
    return tokens, path


def texts(events, count):
    """Token lists by request."""
    found = [[] for _ in range(count)]
    for event in events:
        found[event.request].extend(event.tokens)
    return found


@pytest.mark.parametrize("backend", ["onnxruntime", "eager"])
def test_an_answer_is_that_of_the_whole_text(artifact, generator, saved, backend):
    tokens, path = saved
    params = SamplingParams(max_tokens=30, ignore_eos=True)
    more = generator.tokenizer.encode(" on", special=False)
    (whole,) = generator.generate([[*tokens, *more]], params)
    other = Generator.load(artifact, backend=backend)
    for drafter in (None, LookupDrafter()):
        (got,) = texts(continue_prefix(other, path, more, [params], drafter=drafter), 1)
        assert tuple(got) == whole.tokens


def test_samples_have_streams_of_their_own(generator, saved):
    _, path = saved
    params = [SamplingParams(max_tokens=20, temperature=1.5, ignore_eos=True, seed=3)] * 3
    found = texts(continue_prefix(generator, path, [7], params), 3)
    assert len({tuple(one) for one in found}) == 3
    assert found == texts(continue_prefix(generator, path, [7], params), 3)


def test_the_file_does_not_grow_with_the_text(generator, saved, tmp_path):
    tokens, path = saved
    read_prefix(generator, tokens * 2)
    save_prefix(generator, tokens * 2, tmp_path / "long.state")
    assert (tmp_path / "long.state").stat().st_size - path.stat().st_size < 8 * len(tokens)


def test_damage_and_strangers_are_refused(generator, hybrid_artifact, saved, tmp_path):
    _, path = saved
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    (tmp_path / "bad.state").write_bytes(data)
    params = [SamplingParams(max_tokens=2)]
    with pytest.raises(ArtifactError, match="SHA-256"):
        list(continue_prefix(generator, tmp_path / "bad.state", [7], params))
    other = Generator.load(hybrid_artifact, implementation="function", threads=1)
    with pytest.raises(ArtifactError, match="belongs to model"):
        list(continue_prefix(other, path, [7], params))


def test_impossible_wishes(generator, saved):
    _, path = saved
    with pytest.raises(InputError, match="no tokens"):
        read_prefix(generator, [])
    with pytest.raises(InputError, match="positions end"):
        read_prefix(generator, [5] * 500)
    with pytest.raises(InputError, match="nothing follows"):
        list(continue_prefix(generator, path, [], [SamplingParams()]))


def test_chat_parts_make_the_turn(generator):
    head, rest = chat_parts(generator, "A long text. ", "Why?")
    whole = generator.chat([{"role": "user", "content": "A long text. Why?"}])
    assert [*head, *rest] == whole
    assert chat_parts(generator, "", "Why?")[1] == rest


def test_commands(artifact, tmp_path):
    from click.testing import CliRunner

    from lineahead.cli import main

    (tmp_path / "document.txt").write_text(DOCUMENT)
    run = CliRunner()
    state = str(tmp_path / "document.state")
    text = ["-f", str(tmp_path / "document.txt"), "-o", state]
    made = run.invoke(main, ["prefix", str(artifact), *text, "--chunk", "32", "--json"])
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["bytes"] == (tmp_path / "document.state").stat().st_size
    options = [
        "--state",
        state,
        "-n",
        "2",
        "--max-new-tokens",
        "8",
        "--prompt",
        " What?",
        "--temperature",
        "1",
    ]
    answer = run.invoke(main, ["generate", str(artifact), *options, "--json"])
    assert answer.exit_code == 0, answer.output
    assert len(json.loads(answer.stdout)["texts"]) == 2
    plot = tmp_path / "plot.png"
    long = run.invoke(main, ["endurance", str(artifact), "--tokens", "300", "--plot", str(plot), "--json"])
    assert long.exit_code == 0, long.output
    found = json.loads(long.stdout)
    assert found["tokens"][-1] == 300
    assert len(found["milliseconds"]) == len(found["megabytes"]) == 100
    assert plot.stat().st_size > 1000
