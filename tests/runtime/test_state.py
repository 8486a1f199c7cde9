import json

import numpy as np
import pytest

from lineahead.errors import ArtifactError, InputError, StorageError
from lineahead.runtime import state
from lineahead.runtime.speculate import Decoder


@pytest.fixture
def tensors():
    random = np.random.default_rng(0)
    return {
        "past.length": np.array([3, 5]),
        "past.0.state": random.normal(size=(2, 1, 4, 4)).astype(np.float32),
    }


def test_round_trip(tmp_path, tensors):
    path = tmp_path / "a.state"
    state.save(path, tensors, identity="m", tokens=[[1, 2, 3], [4]])
    found, tokens = state.load(path, identity="m")
    assert tokens == [[1, 2, 3], [4]]
    assert all((found[name] == tensors[name]).all() for name in tensors)
    assert [file.name for file in tmp_path.iterdir()] == ["a.state"]


def test_another_model_version_or_format_is_refused(tmp_path, tensors, monkeypatch):
    path = tmp_path / "a.state"
    state.save(path, tensors, identity="m")
    with pytest.raises(ArtifactError, match="belongs to model 'm', this is 'other'"):
        state.load(path, identity="other")
    monkeypatch.setattr(state, "VERSION", "2")
    with pytest.raises(ArtifactError, match="format"):
        state.load(path, identity="m")


def test_every_damaged_byte_is_noticed(tmp_path, tensors):
    path = tmp_path / "a.state"
    state.save(path, tensors, identity="m", tokens=[[1, 2]])
    whole = path.read_bytes()
    for place in [0, 3, 9, *range(20, len(whole), 7), len(whole) - 1]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ArtifactError):
            state.load(path, identity="m")
    for length in (0, 4, 8, 60, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ArtifactError):
            state.load(path, identity="m")
    path.unlink()
    with pytest.raises(ArtifactError):
        state.load(path, identity="m")


def test_tokens_that_are_not_a_list_are_refused(tmp_path, tensors):
    from safetensors.numpy import save_file

    path = tmp_path / "a.state"
    for text in ("{", json.dumps({"a": 1})):
        header = {"format": state.FORMAT, "version": state.VERSION, "model": "m", "tokens": text}
        save_file(tensors, path, metadata={**header, "sha256": state.digest(tensors, text)})
        with pytest.raises(ArtifactError):
            state.load(path, identity="m")


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path, tensors):
    with pytest.raises(StorageError):
        state.save(tmp_path / "none" / "a.state", tensors, identity="m")


def test_a_document_is_read_once_and_answered_from_later(toy, tmp_path):
    document, questions = [1, 2, 3, 4, 5, 6, 7], [[8, 9], [10]]
    whole, _ = toy.decode(toy.Session(), [toy.row(i, document + q) for i, q in enumerate(questions)])

    session = toy.Session()
    decoder = Decoder(session)
    reader = toy.row(0, document)
    decoder.admit([reader])
    decoder.step()
    session.flush(np.array([list(reader.accept)]), np.array([len(reader.accept)]))
    session.save_state(tmp_path / "document.state", tokens=[document])

    other = toy.Session()
    assert other.load_state(tmp_path / "document.state") == [document]
    other.fork([0, 0])
    rows = [toy.row(i, document + q, fed=len(document)) for i, q in enumerate(questions)]
    list(Decoder(other, rows=rows).run())
    assert {row.request: row.tokens for row in rows} == whole


def test_rows_that_the_session_does_not_hold_are_refused(toy):
    session = toy.Session()
    session.reset(1)
    for row in (toy.row(0, [1, 2, 3], fed=2), toy.row(0, [1, 2, 3], fed=3)):
        with pytest.raises(InputError, match="the session holds"):
            Decoder(session, rows=[row])
