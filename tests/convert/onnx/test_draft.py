"""The draft graph equals the heads."""

import numpy as np
import onnxruntime
import pytest
import torch

from lineahead.convert.drafts.medusa import MedusaConfig, MedusaHeads, save_heads
from lineahead.convert.onnx import draft as module
from lineahead.errors import ArtifactError, ParityError


@pytest.fixture
def artifact(tiny_artifact, tmp_path):
    import shutil

    folder = tmp_path / "artifact"
    shutil.copytree(tiny_artifact, folder)
    torch.manual_seed(0)
    token_ids = torch.randperm(97)[:40].sort().values
    heads = MedusaHeads(MedusaConfig(heads=3, hidden_size=32, vocabulary=40, top=5), token_ids)
    heads.weight.data.normal_(std=0.2)
    heads.bias.data.normal_()
    save_heads(heads, folder)
    return folder, heads


def test_candidates_are_full_vocabulary_ids_best_first(artifact, tmp_path):
    folder, heads = artifact
    record = module.export_draft(folder, tmp_path / "draft.onnx")
    assert record.kind == "draft"
    assert record.parity["log_probs"] < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "draft.onnx", providers=["CPUExecutionProvider"])
    hidden = np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32)
    tokens, log_probs = session.run(["tokens", "log_probs"], {"hidden_states": hidden})
    assert tokens.shape == log_probs.shape == (4, 3, 5)
    assert tokens.dtype == np.int64
    assert set(tokens.ravel()) <= set(heads.token_ids.tolist())
    assert (np.diff(log_probs, axis=-1) <= 0).all()


@pytest.fixture
def traced(artifact, tmp_path):
    """A draft graph on disk and the module it was traced from; every token of the LM head has a twin."""
    torch.manual_seed(1)
    rows = torch.randn(20, 32).repeat_interleave(2, 0)
    graph = module.DraftGraph(artifact[1], rows, torch.zeros(40)).eval().requires_grad_(False)
    module.save(module.trace_draft(graph), tmp_path / "draft.onnx")
    return graph, tmp_path / "draft.onnx"


def test_tied_candidates_may_change_places(traced):
    graph, path = traced
    graph.heads.token_ids = graph.heads.token_ids.view(20, 2).flip(1).flatten()
    assert module.compare_draft(graph, path) < 1e-5


def test_other_candidates_at_the_same_log_probabilities_are_a_difference(traced):
    graph, path = traced
    graph.heads.token_ids = graph.heads.token_ids.roll(2)
    assert module.compare_draft(graph, path) > 1e-2


def test_swapped_heads_are_a_difference(traced):
    graph, path = traced
    graph.heads.weight.data = graph.heads.weight.data.roll(1, 0)
    assert module.compare_draft(graph, path) > 1e-2


def test_a_mismatch_saves_nothing(artifact, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "compare_draft", lambda *_: 0.1)
    with pytest.raises(ParityError, match="differs from eager"):
        module.export_draft(artifact[0], tmp_path / "draft.onnx")
    assert not (tmp_path / "draft.onnx").exists()


def test_no_heads_is_an_error(tiny_artifact, tmp_path):
    with pytest.raises(ArtifactError, match="no draft heads"):
        module.export_draft(tiny_artifact, tmp_path / "draft.onnx")
