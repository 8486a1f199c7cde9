"""The recurrent draft: what it computes, that it learns, what is refused."""

import pytest
import torch

from lineahead.convert.drafts.recurrent import (
    RecurrentConfig,
    RecurrentDraft,
)
from lineahead.convert.drafts.train_recurrent import train_recurrent
from lineahead.convert.training.progress import Silent
from lineahead.errors import TrainingError
from lineahead.recipes.schema import Draft

DRAFT = Draft(kind="recurrent", heads=3, width=48, vocabulary=20, top=4, epochs=30, batch_size=64)


def drawn(size=32, vocabulary=20):
    torch.manual_seed(0)
    config = RecurrentConfig(hidden_size=size, width=48, blocks=2, depth=3, vocabulary=vocabulary, top=4)
    draft = RecurrentDraft(config, torch.arange(0, 2 * vocabulary, 2))
    torch.nn.init.normal_(draft.down, std=0.2)
    torch.nn.init.normal_(draft.fuse_token, std=0.2)
    return draft


def test_one_step_against_its_formula():
    draft, hidden, embedding = drawn(), torch.randn(32), torch.randn(32)

    def norm(x):
        return x / (x.square().mean() + 1e-6).sqrt()

    x = draft.fuse_hidden @ norm(hidden) + draft.fuse_token @ norm(embedding)
    for i in range(2):
        gate = draft.gate[i] @ norm(x)
        x = x + draft.down[i] @ (gate * torch.sigmoid(gate) * (draft.up[i] @ norm(x)))
    assert torch.allclose(draft.advance(hidden[None], embedding[None])[0], norm(x), atol=1e-5)


def test_at_first_every_step_repeats_the_hidden_state():
    config = RecurrentConfig(hidden_size=8, width=8, blocks=1, depth=2, vocabulary=4, top=2)
    draft = RecurrentDraft(config, torch.arange(4), scale=3.0)
    draft.fuse_token.data.zero_()
    hidden = torch.randn(5, 8)
    hidden = 3 * hidden / hidden.square().mean(-1, keepdim=True).sqrt()
    assert torch.allclose(draft.advance(hidden, torch.randn(5, 8)), hidden, atol=1e-4)


def test_training_learns_to_count_ahead(tiny_linear_llama):
    """Text that counts in steps of one or two: the draft learns to count ahead."""
    start, stride = torch.arange(64)[:, None] % 8, 1 + torch.arange(64)[:, None] % 2
    tokens = (start + stride * torch.arange(16)) % 16 + 1
    head = tiny_linear_llama.get_output_embeddings()
    before = head.weight.data.clone()
    try:
        head.weight.data[:] = 0
        features = torch.nn.functional.one_hot((tokens + stride) % 16, 32).float() * 8
        for token in range(1, 17):
            head.weight.data[token, token % 16] = 1.0
        made, accuracy = train_recurrent(
            tiny_linear_llama, features.half(), tokens, DRAFT, seed=0, progress=Silent()
        )
    finally:
        head.weight.data[:] = before
    assert made.config.depth == 3
    assert accuracy.top1[0] > 0.8
    assert accuracy.top5[0] >= accuracy.top1[0]


def test_short_text_is_refused(tiny_linear_llama):
    with pytest.raises(TrainingError, match="too short"):
        train_recurrent(
            tiny_linear_llama,
            torch.zeros(2, 4, 32).half(),
            torch.zeros(2, 4, dtype=torch.long),
            DRAFT,
            seed=0,
            progress=Silent(),
        )
