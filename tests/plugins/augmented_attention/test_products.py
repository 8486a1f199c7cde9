"""Products of the training form against broadcasting, and what bfloat16 operands cost."""

import pytest
import torch

from lineahead.plugins.augmented_attention.methods import PRESETS
from lineahead.plugins.augmented_attention.module import AugmentedAttention
from lineahead.plugins.augmented_attention.products import dot, filtered
from lineahead.plugins.augmented_attention.schema import LayerShape

CAUSAL = [name for name, settings in PRESETS.items() if settings.causal]


def rows(*sizes, seed):
    torch.manual_seed(seed)
    return torch.randn(*sizes, dtype=torch.float64)


def test_shared_heads_are_one_product():
    left, right = rows(2, 3, 4, 5, 6, 7, seed=0), rows(2, 3, 1, 5, 7, 8, seed=1)
    torch.testing.assert_close(dot(left, right, narrow=False), left @ right)


def test_filters_serve_every_text_and_chunk():
    filters, values = rows(3, 4, 6, 7, seed=0), rows(2, 3, 1, 5, 7, 8, seed=1)
    torch.testing.assert_close(filtered(filters, values, narrow=False), filters[None, :, :, None] @ values)


def test_gradients_of_narrow_products_are_those_of_the_rounded_operands():
    left, right = (rows(2, 3, 1, 2, 4, 4, seed=i).float().requires_grad_() for i in (0, 1))
    given = rows(2, 3, 1, 2, 4, 4, seed=2).float().bfloat16().float()
    dot(left, right, narrow=True).backward(given)
    for operand, want in (
        (left, given @ right.bfloat16().float().mT),
        (right, left.bfloat16().float().mT @ given),
    ):
        torch.testing.assert_close(operand.grad, want)


def relative(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("name", CAUSAL)
def test_bfloat16_products_cost_less_than_a_percent(name):
    """Of the output, and of the gradients of all that is trained, over a text of several chunks."""
    settings = PRESETS[name]
    shape = LayerShape(heads=6, kv_heads=2, head_dim=64, value_dim=64)
    torch.manual_seed(0)
    module = AugmentedAttention(settings, shape)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    given = [torch.randn(2, heads, 150, 64).bfloat16().float() for heads in (6, 2, 2, 6)]

    def run(*, narrow):
        module.narrow = narrow
        module.zero_grad()
        query, key, value = (x.clone().requires_grad_() for x in given[:3])
        output = module(query, key, value, 0.125)
        (output * given[3]).sum().backward()
        return [output.detach(), *(x.grad for x in (query, key, value, *module.parameters()))]

    wide, narrow = run(narrow=False), run(narrow=True)
    errors = [relative(found, wanted) for found, wanted in zip(narrow, wide, strict=True)]
    assert max(errors) < 0.01
    assert errors[0] > 1e-4
