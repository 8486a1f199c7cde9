"""Medusa heads: what they compute, that they learn, what is kept and refused."""

import math

import pytest
import torch

from lineahead.convert.checkpoint import load_model
from lineahead.convert.drafts.medusa import MedusaConfig, MedusaHeads, head_rows, load_heads, save_heads
from lineahead.convert.drafts.train import IGNORED, frequent_tokens, head_targets, measure, train_heads
from lineahead.convert.pipeline import train_draft
from lineahead.convert.training.progress import Silent
from lineahead.errors import ArtifactError, RecipeError
from lineahead.recipes.manifest import read_manifest
from lineahead.recipes.schema import Draft

DRAFT = {
    "heads": 2,
    "vocabulary": 12,
    "top": 3,
    "epochs": 3,
    "batch_size": 32,
    "samples": {"tokens": 512, "sequence_length": 16, "batch_size": 8},
}


@pytest.fixture
def heads():
    torch.manual_seed(0)
    made = MedusaHeads(MedusaConfig(heads=2, hidden_size=6, vocabulary=4, top=3), torch.tensor([1, 3, 4, 8]))
    torch.nn.init.normal_(made.weight)
    torch.nn.init.normal_(made.bias)
    return made


def test_heads_against_their_formula(heads):
    hidden, rows, offsets = torch.randn(5, 6), torch.randn(4, 6), torch.randn(4)
    tokens, log_probs = heads(hidden, rows, offsets)
    for b in range(5):
        for k in range(2):
            x = heads.weight[k] @ hidden[b] + heads.bias[k]
            logits = rows @ (hidden[b] + x * torch.sigmoid(x)) + offsets
            best = logits.log_softmax(0).sort(descending=True)
            assert torch.allclose(log_probs[b, k], best.values[:3], atol=1e-5)
            assert torch.equal(tokens[b, k], heads.token_ids[best.indices[:3]])


def test_untrained_heads_say_what_the_lm_head_says(tiny_linear_llama):
    ids = torch.arange(97)
    heads = MedusaHeads(MedusaConfig(heads=3, hidden_size=32, vocabulary=97, top=1), ids)
    text = torch.arange(1, 9)[None]
    with torch.no_grad():
        hidden = tiny_linear_llama.base_model(input_ids=text, use_cache=False).last_hidden_state[0]
        expected = tiny_linear_llama(input_ids=text, use_cache=False).logits[0].argmax(-1)
        tokens, _ = heads(hidden, *head_rows(tiny_linear_llama, ids))
    assert torch.equal(tokens[..., 0], expected[:, None].expand(-1, 3))


def test_targets_are_the_tokens_after_the_next_one():
    tokens = torch.tensor([[5, 6, 7, 8, 5, 6]])
    found = head_targets(tokens, torch.tensor([5, 7, 8]), 2, 10)
    assert found[0, :, 0].tolist() == [1, 2, 0, IGNORED, IGNORED, IGNORED]
    assert found[0, :, 1].tolist() == [2, 0, IGNORED, IGNORED, IGNORED, IGNORED]


def test_frequent_tokens():
    tokens = torch.tensor([[7, 7, 3, 3, 3, 9]])
    assert frequent_tokens(tokens, 2, 10).tolist() == [3, 7]
    assert frequent_tokens(tokens, 4, 10).tolist() == [0, 3, 7, 9]
    assert frequent_tokens(tokens, 0, 10).tolist() == list(range(10))


def test_heads_learn_a_text_that_can_be_predicted(tiny_linear_llama):
    tokens = (torch.arange(24)[None] + torch.arange(40)[:, None]) % 11 + 1
    with torch.no_grad():
        hidden = tiny_linear_llama.base_model(input_ids=tokens, use_cache=False).last_hidden_state.half()
    draft = Draft(heads=2, vocabulary=32, top=2, epochs=40, batch_size=64, learning_rate=0.03)
    heads, accuracy = train_heads(tiny_linear_llama, hidden, tokens, draft, seed=0, progress=Silent())
    assert min(accuracy.top1) > 0.9
    targets = head_targets(tokens, heads.token_ids, 2, 97)
    rows, offsets = head_rows(tiny_linear_llama, heads.token_ids)
    zero = MedusaHeads(heads.config, heads.token_ids)
    untrained = measure(zero, hidden[:, :20].flatten(0, 1), targets[:, :20].flatten(0, 1), rows, offsets)
    assert max(untrained.top1) < 0.5


def test_draft_end_to_end(artifact, recipe):
    manifest = train_draft(artifact, recipe(draft=DRAFT), device="cpu", progress=Silent())
    (record,) = manifest.drafts
    assert record.heads == 2
    assert record.vocabulary == 12
    assert all(0 <= low <= high <= 1 for low, high in zip(record.top1, record.top5, strict=True))
    assert read_manifest(artifact) == manifest
    assert sorted(path.name for path in (artifact / "draft").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    heads = load_heads(artifact)
    with torch.no_grad():
        tokens, log_probs = heads(torch.randn(1, 32), *head_rows(load_model(artifact), heads.token_ids))
    assert tokens.shape == log_probs.shape == (1, 2, 3)
    assert set(tokens.flatten().tolist()) <= set(heads.token_ids.tolist())
    assert math.isfinite(float(log_probs.sum()))
    assert not list(artifact.parent.glob("*.draft"))


def test_a_killed_draft_run_keeps_its_samples(artifact, recipe, monkeypatch):
    import lineahead.convert.drafts.train as module

    class Killed(BaseException):
        pass

    def kill(*arguments, **options):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(module, "train_heads", kill)
        with pytest.raises(Killed):
            train_draft(artifact, recipe(draft=DRAFT), device="cpu", progress=Silent())
    with monkeypatch.context() as patched:
        patched.setattr("lineahead.convert.drafts.self_data._sample", kill)
        manifest = train_draft(artifact, recipe(draft=DRAFT), device="cpu", progress=Silent())
    assert manifest.drafts


def test_no_draft_section(artifact, recipe):
    with pytest.raises(RecipeError, match="no draft section"):
        train_draft(artifact, recipe())


def test_missing_and_damaged_heads(heads, tmp_path):
    with pytest.raises(ArtifactError, match="no draft heads"):
        load_heads(tmp_path)
    folder = save_heads(heads, tmp_path)
    assert torch.equal(load_heads(tmp_path).weight, heads.weight)
    for name, content in (("config.json", b"{}"), ("model.safetensors", b"x")):
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(content)
        with pytest.raises(ArtifactError, match="damaged"):
            load_heads(tmp_path)
        (folder / name).write_bytes(kept)
