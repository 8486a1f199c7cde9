"""The operator's learned parameters for one attention layer, and the forms bound to them."""

import itertools

import torch
from torch import Tensor, nn

from lineahead.plugins.augmented_attention import feature_maps
from lineahead.plugins.augmented_attention.bidirectional import bidirectional
from lineahead.plugins.augmented_attention.cross import cross_attention, summarise
from lineahead.plugins.augmented_attention.linformer import LINFORMER, initial_mixtures
from lineahead.plugins.augmented_attention.parallel import parallel
from lineahead.plugins.augmented_attention.schema import AttentionSettings, LayerShape

Operands = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class AugmentedAttention(nn.Module):
    """Parameters of augmented attention: what conversion adds to a layer and attention transfer trains.

    Attributes:
        alpha: ``[H]``; weight of the global term beside a local one, zero at first (You et al., 2024, figure
            6b). Under a denominator that both share it is the logarithm of the weight, so that the
            denominator stays positive.
        local_scale: ``[H]``, one at first; absent where one normalizer serves both terms, so that only the
            ratio to alpha matters.
        conv: ``[H, taps]``, or both sides of it in an encoder; zero at first; absent without taps.
        query_map, key_map: ``[H, D, M]`` and ``[Hkv, D, M]``; absent when the feature map learns no weights.
        random_map: ``[Hkv, D, M]``, a buffer, saved and never trained; of feature maps whose projection is
            drawn once.
        narrow: whether the causal form over whole texts takes products of bfloat16 operands, for training.
    """

    random_map: Tensor

    def __init__(self, settings: AttentionSettings, shape: LayerShape) -> None:
        super().__init__()
        self.settings, self.shape, self.narrow = settings, shape, False
        if settings.has_both:
            self.alpha = nn.Parameter(
                torch.full((shape.heads,), INITIAL_LOG_ALPHA if self._log_alpha else 0.0)
            )
        if settings.local != "none" and (settings.normalizer == "none" or settings.normalizes != "all"):
            self.local_scale = nn.Parameter(torch.ones(shape.heads))
        if settings.conv_taps:
            self.conv = nn.Parameter(torch.zeros(shape.heads, settings.conv_width))
        if settings.feature_map == LINFORMER:
            self.query_map = nn.Parameter(initial_mixtures(settings, shape))
            self.key_map = nn.Parameter(initial_mixtures(settings, shape))
        feature_map = feature_maps.get(settings.feature_map) if settings.has_state else None
        if feature_map is None or feature_map.initial is None:
            return
        columns = settings.feature_dim or shape.head_dim
        if feature_map.learned:
            self.query_map = nn.Parameter(feature_map.initial(shape.heads, shape.head_dim, columns))
            self.key_map = nn.Parameter(feature_map.initial(shape.kv_heads, shape.head_dim, columns))
        else:
            self.register_buffer("random_map", feature_map.initial(shape.kv_heads, shape.head_dim, columns))

    @property
    def _log_alpha(self) -> bool:
        return self.settings.divides and self.settings.normalizes == "all"

    def operands(self, like: Tensor) -> Operands:
        """The PARAMETERS ports as the operator takes them; a one-element tensor where absent.

        Args:
            like: gives the device and dtype of what is absent where there are no parameters at all.
        """
        anchor = next(itertools.chain(self.parameters(), self.buffers()), like)
        one = anchor.new_ones(1)
        heads = anchor.new_ones(self.shape.heads)
        alpha = getattr(self, "alpha", None)
        if alpha is None:
            alpha = heads
        elif self._log_alpha:
            alpha = alpha.exp()
        query_map, key_map = getattr(self, "query_map", one), getattr(self, "key_map", one)
        if "random_map" in self._buffers:
            key_map = self.random_map
            query_map = key_map.repeat_interleave(self.shape.heads // self.shape.kv_heads, 0)
        conv = getattr(self, "conv", one)
        return alpha, getattr(self, "local_scale", heads), conv, query_map, key_map

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        count: Tensor | None = None,
        starts: Tensor | None = None,
    ) -> Tensor:
        """The form over whole texts: two-sided or causal, as the settings say.

        Shapes as in :func:`bidirectional.bidirectional` and :func:`parallel.parallel`; `count` is the
        former's, `starts` the latter's.
        """
        scale, settings = self.scale(scale), self.settings
        if not settings.causal:
            return bidirectional(
                query, key, value, *self.operands(query), settings=settings, scale=scale, count=count
            )
        return parallel(
            query,
            key,
            value,
            *self.operands(query),
            settings=settings,
            scale=scale,
            narrow=self.narrow,
            starts=starts,
        )

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


class CrossAttention(AugmentedAttention):
    """The operator between a decoder and its encoder."""

    def forward(  # type: ignore[override]  # a source is one text
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, valid: Tensor | None = None
    ) -> Tensor:
        """From every query to a whole source; shapes as in :mod:`cross`."""
        return self.attend(query, *self.summarise(key, value, scale, valid), scale)

    def summarise(
        self, key: Tensor, value: Tensor, scale: float, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What is kept of a source; shapes as in :func:`cross.summarise`."""
        key_map = self.operands(key)[-1]
        return summarise(key, value, key_map, settings=self.settings, scale=self.scale(scale), valid=valid)

    def attend(self, query: Tensor, state: Tensor, norm: Tensor, scale: float) -> Tensor:
        """Attend to a summary; shapes as in :func:`cross.cross_attention`."""
        alpha, _, _, query_map, _ = self.operands(query)
        settings = self.settings
        return cross_attention(
            query, state, norm, alpha, query_map, settings=settings, scale=self.scale(scale)
        )


INITIAL_LOG_ALPHA = -4.0  # docs/notes.md: SmolLM2 untrained 40.8 at -4, 40.9 at -6, 54.1 at -2.3
