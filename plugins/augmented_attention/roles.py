"""The settings that one method has in an encoder, in a decoder, and between them. No torch."""

from dataclasses import replace
from typing import Literal

from lineahead.errors import SettingsError
from lineahead.plugins.augmented_attention.feature_maps import FEATURE_MAPS
from lineahead.plugins.augmented_attention.schema import AttentionSettings

Role = Literal["decoder", "encoder", "cross"]


def role_settings(
    settings: AttentionSettings, role: Role, *, position_bias: bool = False
) -> AttentionSettings:
    """A method's settings for one kind of attention layer.

    `encoder`: two-sided; a method without a local kernel has no group to leave out of its sum, which then
    covers the whole text. `decoder`: causal. `cross`: the global term alone, over the whole source: a target
    position has no group in the source. Without a normalizer the sum would grow with the source, so rows are
    then brought to length 1, as the paper does in T5 (there over all heads at once, here per head).

    A layer with a learned relative bias (T5) loses it. The paper adds that bias to relu^2 of the scores,
    which is a convolution of the values, ``sum_j b[i - j] v_j``, inside the group; here the operator's own
    convolution is as wide as the group instead, and does not stop at the group's border. An unnormalised
    method divides such a layer's rows by their length, as the paper does. Values are not normalised.

    Args:
        settings: the method's.
        role: the layer's.
        position_bias: whether the layer's softmax scores carry a relative bias.

    Raises:
        SettingsError: when the method has no such form.

    Source: You et al., 2024, arXiv:2406.07368, section 4 and appendix (T5).
    """
    unnormalised = settings.normalizer == "none"
    if role == "cross":
        if not settings.has_state or FEATURE_MAPS.named(settings.feature_map).acausal:
            raise SettingsError(
                f"feature_map={settings.feature_map!r}: cross attention needs a sum over the source",
                hint="Keep softmax cross attention (cross: false), or choose a method with a global term.",
            )
        return replace(
            settings,
            causal=False,
            local="none",
            pattern="none",
            local_norm=False,
            sinks=0,
            conv_taps=0,
            normalizer="l2" if unnormalised else settings.normalizer,
            normalizes="all",
        )
    found = replace(settings, causal=role == "decoder")
    if role == "encoder" and settings.local == "none":
        found = replace(found, pattern="none")
    if position_bias and unnormalised:
        found = replace(found, normalizer="l2", normalizes="all")
    if position_bias and settings.local != "none":
        found = replace(found, conv_taps=max(settings.conv_taps, settings.window))
    return found
