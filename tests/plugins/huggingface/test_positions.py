"""Models that count positions their own way are refused by the step model instead of being wrong there."""

import pytest
import torch

from lineahead.convert.replace import linearize
from lineahead.convert.tiny_models import tiny_model
from lineahead.errors import ArchitectureError
from lineahead.plugins.augmented_attention.huggingface.positions import require_given_positions
from lineahead.plugins.augmented_attention.huggingface.step_model import StepModel


@pytest.mark.parametrize(
    ("family", "reason"),
    [("bart", "does not use the position_ids"), ("roberta", "does not number its tokens from 0")],
)
def test_models_that_are_not_told_are_refused(family, reason, settings):
    model = tiny_model(family)
    layers = linearize(model, settings)
    with pytest.raises(ArchitectureError, match=reason):
        StepModel(model, layers)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gpt_neox"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_that_are_told_are_not(family, dtype, softmax_model):
    require_given_positions(softmax_model(family).to(dtype))
