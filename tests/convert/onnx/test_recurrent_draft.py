"""The recurrent draft in an artifact: its files, its graph, what is refused."""

import shutil

import numpy as np
import onnxruntime
import pytest
import torch

from lineahead.convert.checkpoint import load_model
from lineahead.convert.drafts.recurrent import RecurrentConfig, RecurrentDraft, load_recurrent, save_recurrent
from lineahead.convert.onnx import recurrent_draft as graphs
from lineahead.errors import ArtifactError, ParityError


def drawn():
    torch.manual_seed(0)
    config = RecurrentConfig(hidden_size=32, width=48, blocks=2, depth=3, vocabulary=20, top=4)
    draft = RecurrentDraft(config, torch.arange(0, 40, 2))
    torch.nn.init.normal_(draft.down, std=0.2)
    torch.nn.init.normal_(draft.fuse_token, std=0.2)
    return draft


@pytest.fixture
def artifact(tiny_artifact, tmp_path):
    folder = tmp_path / "artifact"
    shutil.copytree(tiny_artifact, folder)
    save_recurrent(drawn(), folder)
    return folder


def test_weights_come_back_in_half_precision(artifact):
    made = load_recurrent(artifact)
    assert torch.equal(made.gate, drawn().gate.half().float())
    assert torch.equal(made.token_ids, drawn().token_ids)


def test_another_kind_and_damage_are_refused(artifact):
    config = artifact / "draft" / "config.json"
    config.write_text(config.read_text().replace("recurrent", "medusa"))
    with pytest.raises(ArtifactError, match="kind 'medusa'"):
        load_recurrent(artifact)
    config.write_text("{")
    with pytest.raises(ArtifactError, match="damaged"):
        load_recurrent(artifact)


def test_the_graph_is_the_draft_and_8_bits_stay_close(artifact, tmp_path):
    record = graphs.export_recurrent(artifact, tmp_path / "draft.onnx", opset=23)
    assert record.precision == "int8"
    assert record.parity["log_probs"] < 1e-4
    assert list(tmp_path.glob("draft_fp32*")) == []
    session = onnxruntime.InferenceSession(tmp_path / "draft.onnx", providers=["CPUExecutionProvider"])
    hidden = np.random.default_rng(0).standard_normal((3, 32)).astype(np.float32)
    guess, tokens, _ = session.run(None, {"hidden_states": hidden, "input_ids": np.array([1, 2, 96])})
    module = graphs.bound(load_recurrent(artifact), load_model(artifact, dtype=torch.float32))
    expected = module(torch.from_numpy(hidden), torch.tensor([1, 2, 96]))
    assert np.abs(guess - expected[0].numpy()).max() < 0.1
    assert set(tokens.ravel()) <= set(range(0, 40, 2))


def test_a_graph_that_differs_is_not_saved(artifact, tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "compare_recurrent", lambda *_: (0.5, 1.0))
    with pytest.raises(ParityError, match="differs from eager"):
        graphs.export_recurrent(artifact, tmp_path / "draft.onnx", opset=23)
    assert list(tmp_path.glob("draft*")) == []
