"""Text files, JSON lines, tokens and batches."""

import gzip
import json

import numpy as np
import pytest
from transformers import AutoTokenizer

from lineahead.convert.training.data import Batches, Tokens, load_tokens, save_tokens, text_tokens
from lineahead.convert.training.text import SECTION_CHARACTERS, documents, expand
from lineahead.errors import InputError
from lineahead.recipes.schema import Data


def test_text_is_cut_at_line_ends_and_nothing_is_lost(tmp_path):
    path = tmp_path / "a.txt"
    content = "".join(f"line {number}\n" for number in range(6000))
    path.write_text(content, encoding="utf-8")
    found = documents(path)
    assert len(found) > 2
    assert "".join(found) == content
    assert all(len(section) < SECTION_CHARACTERS + 20 for section in found)
    packed = tmp_path / "a.txt.gz"
    packed.write_bytes(gzip.compress(content.encode()))
    assert documents(packed) == found


def test_json_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"turns": ["x", "y"]}, {"text": "z"}, {"question": "q"}]
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    assert documents(path) == ["x\n\ny", "z", "q"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"{}\n", "a.jsonl:1"),
        ("a.jsonl", b'{"text": "x"}\nnot json\n', "a.jsonl:2"),
        ("a.txt", b"", "no text"),
        ("a.txt", b"\xff\xfe\xff", "UTF-8"),
        ("a.txt.gz", b"plain", "cannot read"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        documents(tmp_path / name)


def test_a_pattern_without_files():
    with pytest.raises(InputError, match="nothing-here"):
        expand(["nothing-here-*.txt"])


def test_tokens_are_a_function_of_the_seed(source, text, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(source)
    other = tmp_path / "more.txt"
    other.write_text("zzz\n", encoding="utf-8")
    data = Data(files=(str(text), str(other)))
    streams = [text_tokens(data, tokenizer, 7000, seed) for seed in (0, 0, 1, 2, 3)]
    assert streams[0].digest == streams[1].digest
    assert len({stream.digest for stream in streams}) > 1
    assert (streams[0].ids == tokenizer.eos_token_id).sum() == 2
    assert len(text_tokens(data, tokenizer, 50, 0).ids) == 50


def test_batches_cover_the_data_once_per_pass_in_a_new_order():
    tokens = Tokens(ids=np.arange(40, dtype=np.int32), source="")
    batches = Batches(tokens=tokens, sequence_length=4, batch_size=2, seed=0)
    passes = [[batches.batch(number)[:, 0].tolist() for number in range(5 * k, 5 * k + 5)] for k in (0, 1)]
    assert [sorted(row for batch in one for row in batch) for one in passes] == [list(range(0, 40, 4))] * 2
    assert passes[0] != passes[1]
    assert (batches.batch(3) == batches.batch(3)).all()
    assert batches.steps(100, None, 2, 1) == 7
    with pytest.raises(InputError, match="40 training tokens"):
        Batches(tokens=tokens, sequence_length=41, batch_size=1, seed=0)


def test_saved_tokens(tmp_path):
    tokens = Tokens(ids=np.arange(5, dtype=np.int32), source="here")
    save_tokens(tmp_path / "t.npz", tokens)
    found = load_tokens(tmp_path / "t.npz")
    assert (found.digest, found.source) == (tokens.digest, "here")
    (tmp_path / "t.npz").write_bytes(b"x")
    with pytest.raises(InputError, match="damaged"):
        load_tokens(tmp_path / "t.npz")
