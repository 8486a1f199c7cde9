"""The training form: gradients, causality while it trains, layouts, precision under autocast."""

from dataclasses import replace

import operator_cases as cases
import pytest
import torch


@pytest.mark.parametrize("name", cases.PRESET_NAMES)
def test_causal_after_optimiser_steps(name, forms):
    """Training moves every parameter and leaves no way for a token to see the next one."""
    settings = replace(forms.settings(name), window=8)
    shape = forms.schema.LayerShape(
        heads=cases.HEADS, kv_heads=2, head_dim=cases.DIM, value_dim=cases.VALUE_DIM
    )
    torch.manual_seed(0)
    module = forms.module.AugmentedAttention(settings, shape)
    before = [x.detach().clone() for x in module.parameters()]
    case = cases.Case(forms, settings, tokens=40, dtype=torch.float32)
    optimiser = torch.optim.AdamW(module.parameters(), lr=0.05)
    # The next token's value: a leak would learn it.
    target = torch.roll(case.value, -1, 2).repeat_interleave(2, 1)
    for _ in range(8):
        optimiser.zero_grad()
        (module(case.query, case.key, case.value, cases.SCALE) - target).square().mean().backward()
        optimiser.step()
    assert all(not torch.equal(x, y) for x, y in zip(before, module.parameters(), strict=True))
    want = module(case.query, case.key, case.value, cases.SCALE).detach()
    for j in (1, 7, 8, 9, 23, 39):
        changed = [x.clone() for x in (case.query, case.key, case.value)]
        for x in changed:
            x[:, :, j:] = 7.0
        got = module(*changed, cases.SCALE).detach()
        cases.close(got[:, :, :j], want[:, :, :j], 1e-6, f"before token {j}")
    case.parameters = tuple(x.detach() for x in module.operands(case.query))
    scale = module.scale(cases.SCALE)
    if scale == cases.SCALE:
        cases.close(cases.Decoder(case).chain([17, 1, 22]), want, 1e-4, "step form of the trained module")


@pytest.mark.parametrize("name", cases.VARIANTS)
def test_inputs_strided_and_unmodified(name, forms):
    case = cases.Case(forms, forms.settings(name), tokens=21)
    want = case.parallel()
    case.query, case.key, case.value = (
        x.transpose(1, 2).contiguous().transpose(1, 2) for x in (case.query, case.key, case.value)
    )
    before = [x.clone() for x in (case.query, case.key, case.value, *case.parameters)]
    cases.close(case.parallel(), want, 1e-12)
    assert all(
        torch.equal(a, b)
        for a, b in zip(before, (case.query, case.key, case.value, *case.parameters), strict=True)
    )


def test_backward_in_sixteen_bits_is_finite(forms):
    for name in cases.PRESET_NAMES:
        case = cases.Case(forms, forms.settings(name), tokens=70, dtype=torch.bfloat16)
        case.query = (40 * case.query).requires_grad_()
        case.parallel().float().square().sum().backward()
        assert case.query.grad.isfinite().all()
