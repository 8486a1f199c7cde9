"""FLASH as a transformers model: gated attention units, ScaleNorm, token shift, a tied LM head."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from lineahead.errors import InputError
from lineahead.plugins.augmented_attention.huggingface.fixed_layer import CACHE
from lineahead.plugins.gated_attention_unit.attention import (
    GroupState,
    Heads,
    Terms,
    distance_buckets,
    mixed_chunk,
)
from lineahead.plugins.gated_attention_unit.cache import UnitLayer, unit_layers
from lineahead.plugins.gated_attention_unit.config import FlashConfig


class ScaleNorm(nn.Module):
    """``x / rms(x)`` times one learned number.

    Source: Nguyen and Salazar, 2019, arXiv:1910.05895, section 2.2.
    """

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.scale, self.eps = nn.Parameter(torch.ones(())), eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.scale


class GatedAttentionUnit(nn.Module):
    """One layer: attention and feed-forward in one, ``x + W_o (u * attention(v))``.

    Source: Hua et al., 2022, arXiv:2202.10447, eqs. 4 to 7 and section 3.2.
    """

    def __init__(self, config: FlashConfig) -> None:
        super().__init__()
        self.config, wide = config, config.expansion * config.hidden_size
        self.sizes = [wide, wide, config.key_size]
        self.norm = ScaleNorm(config.norm_eps)
        self.projection = nn.Linear(config.hidden_size, sum(self.sizes))
        self.output = nn.Linear(wide, config.hidden_size)
        self.gamma = nn.Parameter(torch.empty(4, config.key_size))
        self.beta = nn.Parameter(torch.zeros(4, config.key_size))
        self.relative = nn.Parameter(torch.zeros(config.relative_buckets))
        if config.conv_taps:
            self.alpha = nn.Parameter(torch.zeros(()))
            self.taps = nn.Parameter(torch.zeros(config.conv_taps))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, layer: UnitLayer) -> Tensor:
        """Continue from `layer`'s state and update it: ``x [B, T, D]`` to the same shape."""
        normed = self.norm(x)
        half = self.config.hidden_size // 2
        past = normed.new_zeros(x.shape[0], 1, half) if layer.shifted is None else layer.shifted
        looks_back = torch.cat([past, normed[..., :half]], 1)
        shifted = torch.cat([looks_back[:, :-1], normed[..., half:]], -1)
        gate, value, base = nn.functional.silu(self.projection(shifted)).split(self.sizes, -1)
        views = [_turned(base * self.gamma[i] + self.beta[i], cos, sin) for i in range(4)]
        heads = Heads(*views)
        state = GroupState.empty(heads.far_key, value) if layer.groups is None else layer.groups
        group = self.config.group_size
        buckets = distance_buckets(group, self.config.relative_buckets, self.config.relative_distance)
        bias = self.relative[buckets.to(x.device)]
        mixed, layer.groups = mixed_chunk(heads, value, bias, state, group, self._terms())
        layer.shifted, layer.tokens = looks_back[:, -1:], layer.tokens + x.shape[1]
        result: Tensor = x + self.output(gate * mixed)
        return result

    def _terms(self) -> Terms:
        augmented, parts = self.config.conv_taps > 0, self.config.parts
        far: Tensor | float = 0.0 if parts == "local" else self.alpha if augmented else 1.0
        return Terms(local=parts != "global", far=far, taps=self.taps if augmented else None)


class FlashPreTrainedModel(PreTrainedModel):
    """What the body and the language model share: the config's class and the initial weights."""

    config_class = FlashConfig
    base_model_prefix = "model"
    _no_split_modules = ["GatedAttentionUnit"]  # noqa: RUF012 (transformers' name and type)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        deviation = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=deviation)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        elif isinstance(module, GatedAttentionUnit):
            nn.init.normal_(module.gamma, std=deviation)
            nn.init.zeros_(module.beta)
            nn.init.zeros_(module.relative)
            for name in ("alpha", "taps") if module.config.conv_taps else ():
                nn.init.zeros_(getattr(module, name))
        elif isinstance(module, ScaleNorm):
            nn.init.ones_(module.scale)


class FlashModel(FlashPreTrainedModel):
    """Embedding, gated attention units, final norm; its decoding state has a constant size."""

    def __init__(self, config: FlashConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([GatedAttentionUnit(config) for _ in range(config.num_hidden_layers)])
        self.norm = ScaleNorm(config.norm_eps)
        self.post_init()  # type: ignore[no-untyped-call]

    def get_input_embeddings(self) -> nn.Module:
        """The token embeddings."""
        return cast(nn.Module, self.embedding)

    def set_input_embeddings(self, value: Any) -> None:
        """Replace the token embeddings."""
        self.embedding = value

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states ``[B, T, D]`` after the final norm.

        Args:
            input_ids: ``[B, T]``, the tokens that follow those in the cache.
            attention_mask: ``[B, N]``; padding may only follow the text, where nothing looks at it.
            cache: an empty dynamic cache, or one that an earlier call returned.
            use_cache: whether to return the state; the config's choice when None.
            past_key_values: the name of `cache` before transformers 5.24.
            kwargs: ignored.

        Raises:
            InputError: for padding before text, or a cache of another kind.
        """
        if attention_mask is not None and bool((attention_mask[:, 1:] > attention_mask[:, :-1]).any()):
            raise InputError(
                "padding before text shifts the groups of a gated attention unit",
                hint="Pad on the right, or generate for texts of one length at a time.",
            )
        keep = self.config.use_cache if use_cache is None else use_cache
        given = past_key_values if cache is None else cache
        held = DynamicCache() if given is None else given
        states = unit_layers(held, len(self.layers))
        x = self.embedding(input_ids)
        cos, sin = self._angles(states[0].tokens, input_ids.shape[1], x)
        for layer, state in zip(self.layers, states, strict=True):
            x = layer(x, cos, sin, state)
        returned: dict[str, Any] = {CACHE: held if keep else None}
        return BaseModelOutputWithPast(last_hidden_state=self.norm(x), **returned)

    def _angles(self, first: int, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``[T, rotary_size / 2]`` of positions from `first` on."""
        half = self.config.rotary_size // 2
        power = torch.arange(half, device=like.device, dtype=torch.float32) / max(half, 1)
        position = torch.arange(first, first + count, device=like.device, dtype=torch.float32)
        angle = position[:, None] * self.config.rope_theta**-power
        return angle.cos().to(like.dtype), angle.sin().to(like.dtype)


class FlashForCausalLM(FlashPreTrainedModel, GenerationMixin):
    """The language model: the body and a tied LM head."""

    _tied_weights_keys = {"lm_head.weight": "model.embedding.weight"}  # noqa: RUF012

    def __init__(self, config: FlashConfig) -> None:
        super().__init__(config)
        self.model = FlashModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    def get_input_embeddings(self) -> nn.Module:
        """The token embeddings."""
        return cast(nn.Module, self.model.embedding)

    def set_input_embeddings(self, value: Any) -> None:
        """Replace the token embeddings."""
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The LM head."""
        return cast(nn.Module, self.lm_head)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits ``[B, T, V]`` of the next token after each of ``input_ids [B, T]``.

        Args:
            input_ids: as :meth:`FlashModel.forward`, like the mask and the caches.
            attention_mask: see there.
            cache: see there.
            labels: ``[B, T]``, -100 where nothing is to be predicted; shifted here.
            use_cache: see there.
            logits_to_keep: only so many last rows of logits; 0 for all.
            past_key_values: see there.
            kwargs: ignored but for what the loss takes.

        Raises:
            InputError: as :meth:`FlashModel.forward`.
        """
        found = self.model(
            input_ids, attention_mask, cache=cache, use_cache=use_cache, past_key_values=past_key_values
        )
        rows = slice(-logits_to_keep, None) if logits_to_keep else slice(None)
        logits = self.lm_head(found.last_hidden_state[:, rows])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size)
        returned: dict[str, Any] = {CACHE: getattr(found, CACHE)}
        return CausalLMOutputWithPast(loss=loss, logits=logits, **returned)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on the first columns of ``x [B, T, K]``, the others as they are."""
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([first * cos - second * sin, first * sin + second * cos, rest], -1)


AutoConfig.register(FlashConfig.model_type, FlashConfig)
AutoModel.register(FlashConfig, FlashModel)
AutoModelForCausalLM.register(FlashConfig, FlashForCausalLM)
