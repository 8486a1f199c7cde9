"""A tiny random model of any causal model type, and the measurement whether its linear form is exact."""

import dataclasses
import gc
import logging
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import transformers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import DynamicCache
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lineahead.convert.replace import linearize
from lineahead.errors import ArchitectureError
from lineahead.plugins.augmented_attention.huggingface.attention import teacher
from lineahead.plugins.augmented_attention.huggingface.fixed_layer import CACHE
from lineahead.plugins.augmented_attention.huggingface.layers import ATTRIBUTE
from lineahead.plugins.augmented_attention.methods import preset
from lineahead.plugins.augmented_attention.schema import AttentionSettings

VOCABULARY = 97
MAX_PARAMETERS = 40_000_000
MEMORY_BYTES = 8 << 30
CHUNKS = (4, 1, 3, 2)

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "n_embd": 32,
    "d_model": 32,
    "intermediate_size": 64,
    "ffn_dim": 64,
    "n_inner": 64,
    "decoder_ffn_dim": 64,
    "moe_intermediate_size": 16,
    "expert_ffn_hidden_size": 16,
    "ffn_hidden_size": 64,
    "shared_expert_intermediate_size": 16,
    "num_hidden_layers": 2,
    "n_layer": 2,
    "num_layers": 2,
    "decoder_layers": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "decoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "qk_head_dim": 16,
    "v_head_dim": 8,
    "word_embed_proj_dim": 32,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "global_head_dim": 8,
    "rotary_dim": 8,
    "num_kv_shared_layers": 0,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "attention_types": [[["global", "local"], 1]],
    "default_language": "en_XX",
    "image_size": 28,
    "patch_size": 14,
    "out_hidden_size": 32,
    "projection_dim": 32,
    "depth": 1,
    "embed_dim": 32,
    "num_heads": 4,
    "first_k_dense_replace": 1,
    "initializer_range": 0.1,
    "pad_token_id": 0,
    "is_decoder": True,
    "use_cache": True,
}
LAYERS = SIZES["num_hidden_layers"]
AUTO_CLASSES = {
    "decoder": AutoModelForCausalLM,
    "encoder": AutoModelForMaskedLM,
    "encoder-decoder": AutoModelForSeq2SeqLM,
}
PER_LAYER = ("layer_types", "mlp_layer_types")


def limit_memory() -> None:
    """Let a model that is too large fail in this process instead of taking the machine."""
    if sys.platform == "win32":
        return
    import resource  # not on Windows

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))


def settings() -> AttentionSettings:
    """The paper's operator, so small that a dozen tokens cross several groups."""
    return preset("augmented", window=4, conv_taps=3)


def measure(name: str, bound: float) -> dict[str, Any]:
    """Status, error, layers and reason for a model type; see ``architectures.Row``."""
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    model: PreTrainedModel | None = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                model = tiny_model(name)
            except ArchitectureError as error:
                return {"status": "failed", "reason": str(error)}
            return _compare(model, bound)
    finally:
        del model
        gc.collect()


def tiny_model(name: str, kind: str = "decoder") -> PreTrainedModel:
    """A random two-layer model of type `name`, in evaluation mode, whose softmax form runs.

    Args:
        name: transformers' model type.
        kind: ``decoder``, ``encoder`` or ``encoder-decoder``: which of the type's language models.

    Raises:
        ArchitectureError: when its config does not let itself be shrunk.
    """
    problem: BaseException | None = None
    for attempt in ATTEMPTS:
        try:
            return _build(lambda attempt=attempt: attempt(CONFIG_MAPPING[name]), kind)  # type: ignore[misc]
        except Exception as error:  # any of 200 constructors
            problem = problem or error
    raise ArchitectureError(f"no tiny model: {_line(problem)}", hint="Extend SIZES.") from problem


def _build(make: Callable[[], PreTrainedConfig], kind: str) -> PreTrainedModel:
    def config() -> PreTrainedConfig:
        made = make()
        if kind != "decoder" and hasattr(made, "is_decoder"):
            made.is_decoder = False
        return made

    auto: Any = AUTO_CLASSES[kind]
    with torch.device("meta"):
        parameters = sum(x.numel() for x in auto.from_config(config()).parameters())
    if parameters > MAX_PARAMETERS:
        raise ArchitectureError(f"{parameters / 1e6:.0f}M parameters after shrinking", hint="Extend SIZES.")
    torch.manual_seed(0)
    model: PreTrainedModel = auto.from_config(config(), dtype=torch.float32)
    inputs = {"decoder_input_ids": torch.arange(3, 6)[None]} if kind == "encoder-decoder" else {}
    with torch.no_grad():
        model.eval()(
            input_ids=torch.arange(3, 6)[None],
            **inputs,
            **({} if kind == "encoder" else {"use_cache": False}),
        )
    return model


def _constructed(
    kind: type[PreTrainedConfig], *, kinds: bool, grouped: bool, embeddings: bool = True
) -> PreTrainedConfig:
    """A config made with small sizes.

    Args:
        kind: its class.
        kinds: with as many kinds of layers as fit, instead of whatever comes first.
        grouped: with fewer key heads than query heads.
        embeddings: with per-layer embeddings where the type has them.
    """
    sizes = dict(SIZES)
    if not grouped:
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    if not embeddings:
        sizes["hidden_size_per_layer_input"] = 0
    return kind(**_arguments(kind, sizes, kinds))


def _overwritten(kind: type[PreTrainedConfig]) -> PreTrainedConfig:
    """The default config with its sizes overwritten."""
    config = kind()
    text = config.get_text_config(decoder=True)
    for part in {id(one): one for one in (text, config)}.values():
        for key, value in SIZES.items():
            if hasattr(part, key):
                setattr(part, key, value)
        for key in PER_LAYER:
            if getattr(part, key, None):
                setattr(part, key, list(getattr(part, key))[:LAYERS])
    return config


def _arguments(kind: type[PreTrainedConfig], sizes: dict[str, Any], kinds: bool) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(kind)}
    found: dict[str, Any] = {key: value for key, value in sizes.items() if key in names}
    default = kind()
    for key in kind.sub_configs:
        part = getattr(default, key, None)
        if isinstance(part, PreTrainedConfig):
            found[key] = {**_arguments(type(part), sizes, kinds), "model_type": type(part).model_type}
    for key in PER_LAYER if kinds else ():
        types = getattr(default, key, None)
        if key in names and types:
            found[key] = (list(dict.fromkeys(types)) + list(types))[:LAYERS]
    return found


ATTEMPTS: tuple[Callable[[type[PreTrainedConfig]], PreTrainedConfig], ...] = (
    partial(_constructed, kinds=True, grouped=True),
    partial(_constructed, kinds=False, grouped=True),
    partial(_constructed, kinds=True, grouped=False),
    partial(_constructed, kinds=False, grouped=False),
    partial(_constructed, kinds=True, grouped=False, embeddings=False),
    _overwritten,
)


def _compare(model: PreTrainedModel, bound: float) -> dict[str, Any]:
    try:
        layers = linearize(model, settings())
    except ArchitectureError as error:
        return {"status": "refused", "reason": str(error)}
    found: dict[str, Any] = {"layers": len(layers)}
    try:
        randomize(model)
        ids = torch.randint(3, VOCABULARY, (2, sum(CHUNKS)), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            full = model(input_ids=ids, use_cache=False).logits
            with teacher():
                effect = float((model(input_ids=ids, use_cache=False).logits - full).abs().max())
            difference = float((_chunked(model, ids) - full).abs().max())
            text = _greedy_matches(model, ids[:, :5])
    except Exception as problem:  # any of 200 models
        return {**found, "status": "inexact", "reason": _line(problem)}
    if not effect > 10 * bound:
        return {**found, "status": "failed", "reason": f"attention moves its logits by {effect:.1e} only"}
    if not difference < bound:
        return {
            **found,
            "status": "inexact",
            "error": difference,
            "reason": "chunks differ from the full pass",
        }
    if not text:
        return {
            **found,
            "status": "inexact",
            "error": difference,
            "reason": "generate() differs without cache",
        }
    return {**found, "status": "exact", "error": difference}


def randomize(model: PreTrainedModel) -> None:
    """Give the operators weights under which all of their terms matter."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        operator = module._modules.get(ATTRIBUTE)
        for weight in () if operator is None else operator.parameters():
            weight.data += 0.5 * torch.randn(weight.shape, generator=generator)


def _chunked(model: PreTrainedModel, ids: Tensor) -> Tensor:
    cache, outputs, start = DynamicCache(config=model.config.get_text_config(decoder=True)), [], 0
    for size in CHUNKS:
        part = ids[:, start : start + size]
        outputs.append(model(input_ids=part, use_cache=True, **{CACHE: cache}).logits)
        start += size
    return torch.cat(outputs, 1)


def _greedy_matches(model: PreTrainedModel, ids: Tensor) -> bool:
    """Whether greedy text with the cache is greedy text without any."""
    model.generation_config = GenerationConfig(pad_token_id=0, do_sample=False, max_new_tokens=8)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    generate = cast(Any, model).generate
    return torch.equal(generate(**inputs, use_cache=True), generate(**inputs, use_cache=False))


def _line(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
