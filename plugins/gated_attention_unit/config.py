"""Sizes of a FLASH model."""

from typing import Any

from transformers import PreTrainedConfig

from lineahead.errors import SettingsError

PARTS = ("both", "local", "global")


class FlashConfig(PreTrainedConfig):
    """Config of :class:`modeling.FlashForCausalLM`; the defaults are the 24-layer model of the study.

    Attributes:
        vocab_size: tokens.
        hidden_size: width D of the residual stream.
        num_hidden_layers: gated attention units, one after another.
        expansion: values and gates are `expansion` times as wide as the residual stream (E).
        key_size: width K of the shared base of queries and keys.
        rotary_size: how many of those turn with the position.
        group_size: G: attention is quadratic within groups of G tokens, and linear beyond.
        relative_buckets: buckets of the relative position bias within a group.
        relative_distance: distance from which on all positions share a bucket.
        norm_eps: added in ScaleNorm.
        rope_theta: base of the rotary angles.
        initializer_range: standard deviation of the initial weights.
        parts: which terms attention has: ``both``, ``local`` (within groups) or ``global`` (between them).
            ``local`` with one group as long as the text is the quadratic form.
        conv_taps: taps of the causal convolution that augmentation adds to the values, one filter a layer;
            the global term then has a learned weight, 0 at first (arXiv:2406.07368, section 4). 0 for FLASH
            itself.

    Source: Hua et al., 2022, arXiv:2202.10447, section 3 and appendix A.
    """

    model_type = "lineahead_flash"

    def __init__(
        self,
        vocab_size: int = 50257,
        hidden_size: int = 768,
        num_hidden_layers: int = 24,
        expansion: int = 2,
        key_size: int = 128,
        rotary_size: int = 32,
        group_size: int = 256,
        relative_buckets: int = 32,
        relative_distance: int = 128,
        norm_eps: float = 1e-5,
        rope_theta: float = 10000.0,
        initializer_range: float = 0.02,
        tie_word_embeddings: bool = True,
        use_cache: bool = True,
        parts: str = "both",
        conv_taps: int = 0,
        **kwargs: Any,
    ) -> None:
        """Keep the sizes.

        Raises:
            SettingsError: when they do not fit each other.
        """
        if rotary_size % 2 or rotary_size > key_size or hidden_size % 2 or group_size < 1:
            raise SettingsError(
                f"rotary_size={rotary_size}, key_size={key_size}, hidden_size={hidden_size}, "
                f"group_size={group_size} do not fit",
                hint="Take an even rotary_size up to key_size, an even hidden_size, a positive group_size.",
            )
        if parts not in PARTS or conv_taps < 0:
            raise SettingsError(
                f"parts={parts!r}, conv_taps={conv_taps}: no such attention",
                hint=f"Take parts out of {', '.join(PARTS)}, and conv_taps from 0.",
            )
        self.parts, self.conv_taps = parts, conv_taps
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, num_hidden_layers
        self.expansion, self.key_size, self.rotary_size = expansion, key_size, rotary_size
        self.group_size, self.relative_buckets = group_size, relative_buckets
        self.relative_distance, self.norm_eps, self.rope_theta = relative_distance, norm_eps, rope_theta
        self.initializer_range, self.use_cache = initializer_range, use_cache
        self.tie_word_embeddings = tie_word_embeddings
        kwargs["tie_word_embeddings"] = tie_word_embeddings
        super().__init__(**kwargs)
