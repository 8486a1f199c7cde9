"""Encoders and cross attention: every method in its two-sided form, against the definition."""

from dataclasses import replace

import operator_cases as cases
import operator_two_sided as two_sided
import pytest
import torch

from lineahead.errors import InputError, SettingsError
from lineahead.plugins.augmented_attention.methods import PRESETS, preset
from lineahead.plugins.augmented_attention.roles import role_settings


@pytest.mark.parametrize("name", two_sided.NAMES)
@pytest.mark.parametrize("check", two_sided.CHECKS, ids=lambda check: check.__name__)
def test_bidirectional(check, name, forms):
    check(forms, name)


@pytest.mark.parametrize("name", two_sided.CROSS)
@pytest.mark.parametrize("check", two_sided.CROSS_CHECKS, ids=lambda check: check.__name__)
def test_cross(check, name, forms):
    check(forms, name)


def test_full_size_groups(forms):
    """Groups of 64 and a filter of 63 taps, over several groups."""
    case = two_sided.TwoSided(forms, "augmented", tokens=150)
    assert case.settings.conv_width == 63
    cases.close(case.run(), case.everything())


def test_a_shorter_text_is_a_text_of_zeros_to_linformer(forms):
    case = two_sided.TwoSided(forms, "linformer", tokens=30)
    count = torch.tensor([11, 30])
    got = case.run(count)
    for x in (case.key, case.value):
        x[0, :, 11:] = 0
    cases.close(got[0, :, :11], case.run()[0, :, :11])


def test_linformer_says_where_it_ends(forms):
    case = two_sided.TwoSided(forms, "linformer", tokens=two_sided.LONGEST + 1)
    with pytest.raises(InputError, match="41 tokens: Linformer's mixtures end at 40"):
        case.run()


@pytest.mark.parametrize("name", PRESETS)
def test_every_method_has_roles_or_says_why_not(name):
    settings = PRESETS[name]
    encoder = role_settings(settings, "encoder")
    assert not encoder.causal
    assert replace(encoder, causal=settings.causal, pattern=settings.pattern) == settings
    assert encoder.pattern == ("none" if settings.local == "none" else settings.pattern)
    if "linformer" in name:
        for role in ("decoder", "cross"):
            with pytest.raises(SettingsError, match="linformer"):
                role_settings(settings, role)
        return
    assert role_settings(settings, "decoder").causal
    if not settings.has_state:
        with pytest.raises(SettingsError, match="cross attention needs a sum"):
            role_settings(settings, "cross")
        return
    cross = role_settings(settings, "cross")
    assert (cross.local, cross.conv_taps, cross.pattern, cross.sinks) == ("none", 0, "none", 0)
    assert cross.normalizer != "none"


def test_a_lost_position_bias_widens_the_convolution():
    found = role_settings(preset("augmented"), "decoder", position_bias=True)
    assert (found.conv_taps, found.normalizer, found.normalizes) == (64, "l2", "all")
    kept = role_settings(preset("softmax-hedgehog"), "encoder", position_bias=True)
    assert (kept.conv_taps, kept.normalizer) == (64, "denominator")
