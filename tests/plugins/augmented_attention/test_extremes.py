"""Where maps and kernels touch their bounds: outputs are defined and gradients finite."""

import pytest
import torch

from lineahead.plugins.augmented_attention.feature_maps import performer
from lineahead.plugins.augmented_attention.local_kernels import yoso
from lineahead.plugins.augmented_attention.methods import preset
from lineahead.plugins.augmented_attention.module import AugmentedAttention
from lineahead.plugins.augmented_attention.schema import LayerShape


def test_a_query_without_relu_features_attends_to_nothing():
    module = AugmentedAttention(preset("relu"), LayerShape(heads=2, kv_heads=2, head_dim=4, value_dim=3))
    query = (-torch.rand(1, 2, 5, 4)).requires_grad_()
    output = module(query, torch.rand(1, 2, 5, 4), torch.rand(1, 2, 5, 3), 0.5)
    assert torch.equal(output, torch.zeros_like(output))
    output.sum().backward()
    assert query.grad.isfinite().all()


@pytest.mark.parametrize("cosine", [-1.0, 1.0, 1.0000001])
def test_yoso_slope_is_finite_where_that_of_acos_is_not(cosine):
    score = torch.tensor([[cosine]], requires_grad=True)
    weight = yoso.weigh(score, torch.ones(1, 1, dtype=torch.bool))
    weight.sum().backward()
    assert 0 <= weight.item() <= 1
    assert score.grad.isfinite().all()


@pytest.mark.parametrize("length", [1e-3, 1.0, 20.0, 1e4])
def test_performer_gradients_are_finite_at_the_bounds_of_the_exponent(length):
    weight = 100 * torch.eye(4)[None]
    x = torch.full((1, 1, 3, 4), length, requires_grad=True)
    features = performer.apply(x, weight, 1.0)
    assert features.isfinite().all()
    assert (features > 0).all()
    features.sum().backward()
    assert x.grad.isfinite().all()
