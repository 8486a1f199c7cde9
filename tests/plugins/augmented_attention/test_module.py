"""The parameters as a module: which exist, where they start, how they are saved."""

import operator_cases as cases
import pytest
import torch


def build(forms, name, **shape):
    layout = {"heads": 4, "kv_heads": 2, "head_dim": 6, "value_dim": 5} | shape
    return forms.module.AugmentedAttention(forms.settings(name), forms.schema.LayerShape(**layout))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("augmented", {"alpha", "local_scale", "conv"}),
        ("softmax-hedgehog", {"alpha", "conv", "query_map", "key_map"}),
        ("local-only", {"local_scale", "conv"}),
        ("global-only", {"conv"}),
        ("performer", set()),
        ("augmented-performer", {"alpha", "local_scale", "conv"}),
        ("augmented-yoso", {"alpha", "local_scale", "conv"}),
        ("rms-of-all", {"alpha", "conv"}),
        ("softmax-local-only", set()),
        ("no-conv", {"alpha", "local_scale"}),
    ],
)
def test_only_the_parameters_that_the_settings_use(name, expected, forms):
    assert {key for key, _ in build(forms, name).named_parameters()} == expected


@pytest.mark.parametrize("name", ["augmented", "performer", "yoso", "relu", "flash-global"])
def test_operands_follow_the_module_or_the_data_to_a_device(name, forms):
    module = build(forms, name).to("meta")
    assert {one.device.type for one in module.operands(torch.empty(1, device="meta"))} == {"meta"}


def test_the_augmented_form_starts_with_its_window_alone(forms):
    """alpha = 0, conv = 0, local_scale = 1: the global term and the convolution come in by training."""
    module = build(forms, "augmented")
    assert not module.alpha.any()
    assert not module.conv.any()
    assert (module.local_scale == 1).all()


def test_a_softmax_window_starts_close_to_softmax_attention(forms):
    """Shorter than its window, the untrained softmax form is softmax attention."""
    module = build(forms, "softmax-hedgehog", kv_heads=4)
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, 50, 6), torch.randn(1, 4, 50, 6), torch.randn(1, 4, 50, 5)
    want = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.4)
    cases.close(module(query, key, value, 0.4).detach(), want, 1e-5)


def test_hedgehog_maps_start_at_the_identity(forms):
    module = build(forms, "softmax-hedgehog")
    assert torch.equal(module.key_map, torch.eye(6).repeat(2, 1, 1))
    assert torch.equal(module.query_map, torch.eye(6).repeat(4, 1, 1))


@pytest.mark.parametrize("name", cases.VARIANTS)
def test_state_dict_round_trip(name, forms):
    one, two = build(forms, name), build(forms, name)
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.normal_()
    two.load_state_dict(one.state_dict(), strict=True)
    query, key, value = torch.randn(1, 4, 20, 6), torch.randn(1, 2, 20, 6), torch.randn(1, 2, 20, 5)
    assert torch.equal(one(query, key, value, 0.3), two(query, key, value, 0.3))


@pytest.mark.parametrize("name", cases.VARIANTS)
def test_every_parameter_gets_a_gradient(name, forms):
    module = build(forms, name)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1)
    query, key, value = torch.randn(1, 4, 40, 6), torch.randn(1, 2, 40, 6), torch.randn(1, 2, 40, 5)
    if name in cases.PRESET_NAMES:  # beyond the window, or the global part has nothing to do
        query, key, value = (x.repeat(1, 1, 4, 1) for x in (query, key, value))
    output = module(query.requires_grad_(), key, value, 0.3)
    output.square().sum().backward()
    for key_, parameter in module.named_parameters():
        assert parameter.grad is not None, key_
        assert parameter.grad.abs().sum() > 0, key_
