"""Several texts in a row of the training form: each as if it were alone, gradients included."""

from dataclasses import replace

import pytest
import torch

from lineahead.plugins.augmented_attention.methods import PRESETS
from lineahead.plugins.augmented_attention.module import AugmentedAttention
from lineahead.plugins.augmented_attention.schema import LayerShape

SHAPE = LayerShape(heads=4, kv_heads=2, head_dim=8, value_dim=8)
SIZE = 8
TEXTS = (11, 3, 40, 8, 1)  # tokens; with what pads them to whole chunks: 2, 1, 5, 1, 1 chunks
CAUSAL = {name: settings for name, settings in PRESETS.items() if settings.causal}
CASES = {
    **{name: replace(settings, window=SIZE) for name, settings in CAUSAL.items()},
    "many sinks": replace(CAUSAL["softmax-hedgehog"], window=SIZE, sinks=SIZE + 3),
    "no sinks": replace(CAUSAL["softmax-hedgehog"], window=SIZE, sinks=0),
}


def chunks_of(tokens):
    return -(-tokens // SIZE)


@pytest.fixture
def places():
    """First position of every text, and the chunk in which each chunk's text begins."""
    firsts, starts = [], []
    for tokens in TEXTS:
        firsts.append(len(starts) * SIZE)
        starts += [len(starts)] * chunks_of(tokens)
    return firsts, torch.tensor(starts)[None]


@pytest.mark.parametrize("name", CASES)
def test_every_text_is_alone(name, places):
    """Outputs and gradients; what pads a text is large, and so would be what leaks from it."""
    firsts, starts = places
    torch.manual_seed(0)
    module = AugmentedAttention(CASES[name], SHAPE).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    length = starts.shape[1] * SIZE
    row = [torch.randn(1, heads, length, 8, dtype=torch.float64) for heads in (4, 2, 2)]
    real = torch.zeros(length, dtype=torch.bool)
    for first, tokens in zip(firsts, TEXTS, strict=True):
        real[first : first + tokens] = True
    for x in row:
        x[:, :, ~real] *= 50
        x.requires_grad_()
    together = module(*row, 0.3, starts=starts)
    together[:, :, real].square().sum().backward()
    for first, tokens in zip(firsts, TEXTS, strict=True):
        own = [x[:, :, first : first + tokens].detach().clone().requires_grad_() for x in row]
        alone = module(*own, 0.3)
        alone.square().sum().backward()
        torch.testing.assert_close(together[:, :, first : first + tokens], alone, rtol=1e-9, atol=1e-9)
        for x, y in zip(row, own, strict=True):
            torch.testing.assert_close(x.grad[:, :, first : first + tokens], y.grad, rtol=1e-8, atol=1e-8)
    assert all(not x.grad[:, :, ~real].any() for x in row)


def test_one_text_is_what_it_is_without_starts():
    torch.manual_seed(0)
    module = AugmentedAttention(CASES["softmax-hedgehog"], SHAPE).double()
    row = [torch.randn(2, heads, 40, 8, dtype=torch.float64) for heads in (4, 2, 2)]
    starts = torch.zeros(2, 5, dtype=torch.long)
    torch.testing.assert_close(module(*row, 0.3, starts=starts), module(*row, 0.3))
