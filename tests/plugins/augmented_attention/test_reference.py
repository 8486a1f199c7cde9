"""Every form, the reference first, against the definition: both presets and settings far from them."""

import operator_cases as cases
import operator_checks as checks
import pytest
import torch

ALL = (*cases.VARIANTS, *cases.UNCOMPILED)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("check", checks.CHECKS, ids=lambda check: check.__name__)
def test_form(check, name, forms):
    check(forms, name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", ALL)
def test_sixteen_bits(name, dtype, forms):
    checks.sixteen_bits(forms, name, dtype)
