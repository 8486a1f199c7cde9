import json

import numpy as np
import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import Unigram

from lineahead.errors import ArtifactError, InputError
from lineahead.runtime.row import Row
from lineahead.runtime.sampling import SamplingParams, stream
from lineahead.runtime.tokenizer import TextStream, Tokenizer

TEXT = "Grüße, 世界! 🙂 end. Stop here, please."


@pytest.fixture
def tokenizer(tokenizer_folder):
    return Tokenizer(tokenizer_folder)


def test_encode_and_decode(tokenizer):
    tokens = tokenizer.encode("aé")
    assert tokens[0] == 0
    assert len(tokens) == 4
    assert tokenizer.decode(tokens) == "aé"
    assert tokenizer.decode([*tokens, 1], special=True) == "<s>aé</s>"
    assert tokenizer.encode("aé", special=False) == tokens[1:]
    assert tokenizer.token("</s>") == 1
    assert tokenizer.token("nothing like this") is None
    assert tokenizer.size == 258
    assert tokenizer.special == {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("seed", range(4))
def test_text_arrives_whole_characters_at_a_time(tokenizer, seed):
    tokens = tokenizer.encode(TEXT, special=False)
    found = TextStream(tokenizer, tokenizer.encode("prompt"))
    random, place, pieces = np.random.default_rng(seed), 0, []
    while place < len(tokens):
        size = int(random.integers(1, 6))
        pieces.append(found.push(tokens[place : place + size]))
        place += size
    pieces.append(found.finish())
    assert "".join(pieces) == found.text == TEXT
    assert not any("\ufffd" in piece for piece in pieces)


def test_half_a_character_at_the_end_is_shown_as_such(tokenizer):
    found = TextStream(tokenizer, [])
    assert found.push(tokenizer.encode("a🙂", special=False)[:-1]) == ""
    assert found.finish() == "a\ufffd"


@pytest.mark.parametrize("size", [1, 2, 5, 100])
@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (("Stop",), "Grüße, 世界! 🙂 end. "),
        (("界! 🙂", "Stop"), "Grüße, 世"),
        (("zzz", "please.", "ease"), "Grüße, 世界! 🙂 end. Stop here, pl"),
        (("please.!",), TEXT),
        (("G",), ""),
    ],
)
def test_stop_strings_cut_the_text_and_never_leak(tokenizer, size, stop, expected):
    tokens = tokenizer.encode(TEXT, special=False)
    found = TextStream(tokenizer, [0], stop)
    seen = ""
    for place in range(0, len(tokens), size):
        seen += found.push(tokens[place : place + size])
        assert expected.startswith(seen)
    seen += found.finish()
    assert seen == found.text == expected
    assert found.stopped == (expected != TEXT)


def test_a_row_stops_at_the_token_that_completes_the_stop_string(tokenizer):
    prompt, params = [0], SamplingParams(stop=("nd. S",), max_tokens=99)
    row = Row(
        request=0,
        tokens=prompt[:],
        prompt=1,
        params=params,
        random=stream(params, 0),
        text=TextStream(tokenizer, prompt, params.stop),
    )
    tokens = tokenizer.encode(TEXT, special=False)
    kept, text = row.emit(tokens)
    assert row.finish == "stop"
    assert text == "Grüße, 世界! 🙂 e"
    assert tokenizer.decode(row.tokens) == "Grüße, 世界! 🙂 end. S"
    assert kept == len(row.tokens) - 1


def test_chat(tokenizer, tokenizer_folder):
    tokens = tokenizer.chat([{"role": "user", "content": "hi"}])
    assert tokenizer.decode(tokens, special=True) == "<s>user: hi\n"
    (tokenizer_folder / "chat_template.jinja").write_text(
        "{{ raise_exception('only ' + messages[0].role) if reason is not defined else reason | tojson }}"
    )
    other = Tokenizer(tokenizer_folder)
    with pytest.raises(InputError, match="only user"):
        other.chat([{"role": "user", "content": "hi"}])
    assert other.decode(other.chat([], reason="é<")) == '"é<"'


@pytest.mark.parametrize("attack", ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{% for %}"])
def test_templates_are_sandboxed(tokenizer_folder, attack):
    (tokenizer_folder / "chat_template.jinja").write_text(attack)
    with pytest.raises(InputError, match="template"):
        Tokenizer(tokenizer_folder).chat([{"role": "user", "content": "hi"}])


def test_named_templates_and_none(tokenizer_folder):
    path = tokenizer_folder / "tokenizer_config.json"
    path.write_text(
        json.dumps(
            {"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]}
        )
    )
    assert Tokenizer(tokenizer_folder).template == "d"
    path.write_text("{}")
    with pytest.raises(InputError, match="no chat template"):
        Tokenizer(tokenizer_folder).chat([])


def test_missing_and_damaged_files_are_named(tokenizer_folder):
    path = tokenizer_folder / "tokenizer.json"
    path.write_text(path.read_text()[:-40])
    with pytest.raises(ArtifactError, match=r"tokenizer\.json"):
        Tokenizer(tokenizer_folder)
    path.unlink()
    with pytest.raises(ArtifactError, match=r"no tokenizer\.json"):
        Tokenizer(tokenizer_folder)
    (tokenizer_folder / "tokenizer_config.json").write_text("{")


def test_a_vocabulary_that_cannot_spell_a_text_is_an_error_of_the_file(tmp_path):
    FastTokenizer(Unigram([("a", 0.0)])).save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.encode("aa") == [0, 0]
    with pytest.raises(ArtifactError, match="damaged: Encountered an unknown token"):
        tokenizer.encode("ab")
