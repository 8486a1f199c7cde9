"""The operator's learned parameters for one attention layer, and the forms bound to them."""

import torch
from torch import Tensor, nn

from lineahead.plugins.augmented_attention import feature_maps
from lineahead.plugins.augmented_attention.parallel import parallel
from lineahead.plugins.augmented_attention.schema import AttentionSettings, LayerShape

Operands = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class AugmentedAttention(nn.Module):
    """Parameters of augmented attention: what conversion adds to a layer and attention transfer trains.

    Attributes:
        alpha: ``[H]``; weight of the global term, zero at first (You et al., 2024, figure 6b). Under a
            denominator it is
            the logarithm of the weight, so that the denominator stays positive.
        local_scale: ``[H]``, one at first; absent under a denominator, where only the ratio to alpha matters.
        conv: ``[H, taps]``, zero at first; absent without taps.
        query_map, key_map: ``[H, D, M]`` and ``[Hkv, D, M]``; absent when the feature map has no weights.
    """

    def __init__(self, settings: AttentionSettings, shape: LayerShape) -> None:
        super().__init__()
        self.settings, self.shape = settings, shape
        positive = settings.normalizer == "denominator"
        if settings.has_state:
            self.alpha = nn.Parameter(torch.full((shape.heads,), INITIAL_LOG_ALPHA if positive else 0.0))
        if settings.local != "none" and not positive:
            self.local_scale = nn.Parameter(torch.ones(shape.heads))
        if settings.conv_taps:
            self.conv = nn.Parameter(torch.zeros(shape.heads, settings.conv_taps))
        initial = feature_maps.get(settings.feature_map).initial if settings.has_state else None
        if initial is not None:
            columns = settings.feature_dim or shape.head_dim
            self.query_map = nn.Parameter(initial(shape.heads, shape.head_dim, columns))
            self.key_map = nn.Parameter(initial(shape.kv_heads, shape.head_dim, columns))

    def operands(self) -> Operands:
        """The PARAMETERS ports as the operator takes them; a one-element tensor where absent."""
        anchor = next(self.parameters(), torch.ones(1))
        one = anchor.new_ones(1)
        heads = anchor.new_ones(self.shape.heads)
        alpha = getattr(self, "alpha", None)
        if alpha is None:
            alpha = heads
        elif self.settings.normalizer == "denominator":
            alpha = alpha.exp()
        return (
            alpha,
            getattr(self, "local_scale", heads),
            getattr(self, "conv", one),
            getattr(self, "query_map", one),
            getattr(self, "key_map", one),
        )

    def forward(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """The training form over whole texts; shapes as in :func:`parallel.parallel`."""
        return parallel(query, key, value, *self.operands(), settings=self.settings, scale=self.scale(scale))

    def scale(self, attention_scale: float) -> float:
        """The multiplier of ``q . k``: the layer's own, or 1 when queries and keys are normalised."""
        return 1.0 if self.settings.qk_norm else attention_scale

    @property
    def features(self) -> int:
        """Width F of the state; 0 without one."""
        if not self.settings.has_state:
            return 0
        columns = self.settings.feature_dim or self.shape.head_dim
        return feature_maps.get(self.settings.feature_map).width(self.shape.head_dim, columns)


INITIAL_LOG_ALPHA = -4.0  # docs/notes.md: SmolLM2 untrained 40.8 at -4, 40.9 at -6, 54.1 at -2.3
