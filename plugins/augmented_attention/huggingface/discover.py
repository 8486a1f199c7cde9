"""Find any model's attention layers: run one tiny forward with a function that writes down who called it."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import DynamicCache, LinearAttentionCacheLayerMixin
from transformers.masking_utils import flash_attention_mask

from lineahead.errors import ArchitectureError
from lineahead.plugins.augmented_attention.huggingface.adapters import is_adapted
from lineahead.plugins.augmented_attention.huggingface.routing import share_implementation
from lineahead.plugins.augmented_attention.schema import LayerShape

PROBE = "lineahead_probe"
HINT = "See `lineahead architectures` for what is supported; --layers can leave some layers as they are."
_DECAY = ", and its ALiBi weights decay with distance, which the operator's state cannot do"
ALIBI = {"bloom": _DECAY, "mpt": _DECAY}
_TOKENS = 3


@dataclass(frozen=True, kw_only=True)
class FoundLayer:
    """One attention layer that routes through transformers' attention table.

    Attributes:
        name: dotted path of the attention module.
        index: its ``layer_idx``.
        shape: its heads.
        softcap: bound of its scores; None without.
    """

    name: str
    index: int
    shape: LayerShape
    softcap: float | None = None


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of the attention function: by whom, shapes, mask.

    `softcap`: bound of the scores; `plain`: whether they have no cap or sinks; `window`: what the module
    applies itself, 0 for none.
    """

    module: nn.Module
    query: tuple[int, ...]
    key: tuple[int, ...]
    value: tuple[int, ...]
    causal: bool
    position_bias: bool
    mask: Tensor | None
    softcap: float | None
    plain: bool
    window: int


def discover(model: PreTrainedModel) -> list[FoundLayer]:
    """The model's attention layers, by layer index.

    Args:
        model: a loaded causal language model. Unchanged afterwards.

    Raises:
        ArchitectureError: when its attention cannot be replaced, saying why.
    """
    kind = type(model).__name__
    _refuse_own_state(model, kind)
    return sorted(found_layers(model, probe(model, flash_attention_mask)), key=lambda layer: layer.index)


def found_layers(model: PreTrainedModel, calls: list[Call]) -> list[FoundLayer]:
    """The layers that made `calls`, in the order of the calls.

    Raises:
        ArchitectureError: when one of them cannot be replaced.
    """
    kind = type(model).__name__
    if not calls:
        raise ArchitectureError(
            f"{kind} never calls transformers' attention table{ALIBI.get(model.config.model_type, '')}: "
            "its attention cannot be replaced",
            hint=HINT,
        )
    names = {id(module): name for name, module in model.named_modules()}
    counts = Counter(id(call.module) for call in calls)
    found = [_layer(kind, call, names.get(id(call.module)), counts[id(call.module)]) for call in calls]
    for index, times in Counter(layer.index for layer in found).items():
        if times > 1:
            raise ArchitectureError(f"{kind}: {times} attention modules share layer index {index}", hint=HINT)
    return found


def _refuse_own_state(model: PreTrainedModel, kind: str) -> None:
    own = getattr(model, "_is_stateful", False)
    config = model.config.get_text_config(decoder=True)
    try:
        layers = DynamicCache(config=config).layers
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise ArchitectureError(
            f"{kind} does not use transformers' dynamic cache ({error})", hint=HINT
        ) from error
    own = own or any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)
    generates = getattr(type(model), "_supports_default_dynamic_cache", None)  # classifiers do not generate
    if own or (generates is not None and not generates()):
        raise ArchitectureError(f"{kind} keeps a recurrent state of its own beside the KV cache", hint=HINT)


def probe(
    model: PreTrainedModel, mask: Callable[..., Tensor | None], inputs: dict[str, Tensor] | None = None
) -> list[Call]:
    """Run a few tokens and return every call of the attention function, in order.

    Args:
        model: unchanged afterwards.
        mask: what transformers calls for masks.
        inputs: the tokens; three of them as `input_ids` when None.

    Raises:
        ArchitectureError: when the model does not run.
    """
    calls: list[Call] = []

    def write_down(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        causal = kwargs.get("is_causal")
        calls.append(
            Call(
                module=module,
                query=tuple(query.shape),
                key=tuple(key.shape),
                value=tuple(value.shape),
                causal=getattr(module, "is_causal", True) if causal is None else bool(causal),
                position_bias=kwargs.get("position_bias") is not None,
                mask=attention_mask,
                window=int(kwargs.get("local_window", 0)),
                softcap=kwargs.get("softcap"),
                plain=kwargs.get("softcap") is None and kwargs.get("s_aux") is None,
            )
        )
        return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[3]), None

    AttentionInterface.register(PROBE, write_down)
    AttentionMaskInterface.register(PROBE, mask)
    with _implementation(model, PROBE), torch.no_grad():
        given = inputs or {"input_ids": torch.arange(1, 1 + _TOKENS, device=model.device)[None]}
        cache = {} if inputs else {"use_cache": False}  # encoders do not know the word
        try:
            model(**given, **cache)
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError) as error:
            line = (str(error) or type(error).__name__).splitlines()[0]
            raise ArchitectureError(f"{type(model).__name__} cannot be probed: {line}", hint=HINT) from error
    return calls


@contextmanager
def _implementation(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Run with another attention implementation, in evaluation mode, and put everything back."""
    before, training = _implementations(model), model.training
    if is_adapted(model):  # transformers reads the source of their classes, and would refuse
        model.config._attn_implementation_internal = name
    else:
        model.set_attn_implementation(name)
    share_implementation(model)
    model.eval()
    try:
        yield
    finally:
        model.train(training)
        for config, value in before:
            config._attn_implementation_internal = value


def _implementations(model: PreTrainedModel) -> list[tuple[Any, str | None]]:
    """Every config in the model and the attention implementation it names now."""
    configs: dict[int, Any] = {}
    pending = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    while pending:
        config = pending.pop()
        if id(config) in configs or not hasattr(config, "_attn_implementation"):
            continue
        configs[id(config)] = config
        pending += [
            getattr(config, key) for key in getattr(config, "sub_configs", {}) if getattr(config, key, None)
        ]
    return [(config, config._attn_implementation) for config in configs.values()]


def _layer(kind: str, call: Call, name: str | None, times: int) -> FoundLayer:
    where = f"{kind}, {name or type(call.module).__name__}"
    (_, heads, rows, dim), (_, kv_heads, keys, key_dim), (_, _, _, value_dim) = (
        call.query,
        call.key,
        call.value,
    )
    index = getattr(call.module, "layer_idx", None)
    problem = None
    if name is None or not isinstance(index, int):
        problem = "its attention module has no layer index"
    elif times > 1:
        problem = f"it attends {times} times per layer"
    elif not call.causal:
        problem = "its attention is not causal"
    elif call.position_bias:
        problem = "its scores carry a position bias"
    elif keys != rows or rows != _TOKENS:
        problem = f"it attends from {rows} rows to {keys} for {_TOKENS} tokens"
    elif dim != key_dim or heads % kv_heads:
        problem = f"{heads} query heads of {dim} do not fit {kv_heads} key heads of {key_dim}"
    if problem is not None:
        raise ArchitectureError(f"{where}: {problem}", hint=HINT)
    assert name is not None
    assert isinstance(index, int)
    shape = LayerShape(heads=heads, kv_heads=kv_heads, head_dim=dim, value_dim=value_dim)
    return FoundLayer(name=name, index=index, shape=shape, softcap=call.softcap)
