"""A tiny random model of any causal model type, and the measurement that says whether its linear form is exact."""

import gc
import logging
import resource
import sys
import warnings
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lineahead.convert.replace import linearize
from lineahead.errors import ArchitectureError
from lineahead.plugins.augmented_attention.huggingface.layers import ATTRIBUTE
from lineahead.plugins.augmented_attention.schema import AttentionSettings, preset

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
    "first_k_dense_replace": 1,
    "initializer_range": 0.1,
    "pad_token_id": 0,
    "is_decoder": True,
    "use_cache": True,
}
PER_LAYER = ("layer_types", "mlp_layer_types")


def limit_memory() -> None:
    """Let a model that is too large fail in this process instead of taking the machine."""
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
            except (Exception, SystemExit) as error:  # noqa: BLE001 (any of 200 constructors)
                return {"status": "failed", "reason": f"no tiny model: {_line(error)}"}
            return _compare(model, bound)
    finally:
        del model
        gc.collect()


def tiny_model(name: str) -> PreTrainedModel:
    """A random two-layer model of type `name`, in evaluation mode.

    Raises:
        ArchitectureError: when its config does not let itself be shrunk.
    """
    config = tiny_config(name)
    torch.manual_seed(0)
    with torch.device("meta"):
        parameters = sum(x.numel() for x in AutoModelForCausalLM.from_config(config).parameters())
    if parameters > MAX_PARAMETERS:
        raise ArchitectureError(f"{parameters / 1e6:.0f}M parameters after shrinking", hint="Name its sizes in SIZES.")
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval()


def tiny_config(name: str) -> PreTrainedConfig:
    """The type's default config with small sizes."""
    config = CONFIG_MAPPING[name]()
    text = config.get_text_config(decoder=True)
    for part in {id(one): one for one in (text, config)}.values():
        _shrink(part)
    return config


def _shrink(config: PreTrainedConfig) -> None:
    for key, value in SIZES.items():
        if hasattr(config, key):
            setattr(config, key, value)
    for key in PER_LAYER:
        if getattr(config, key, None):
            setattr(config, key, list(getattr(config, key))[: SIZES["num_hidden_layers"]])


def _compare(model: PreTrainedModel, bound: float) -> dict[str, Any]:
    try:
        layers = linearize(model, settings())
    except ArchitectureError as error:
        return {"status": "refused", "reason": str(error)}
    found: dict[str, Any] = {"layers": len(layers)}
    try:
        _randomize(model)
        ids = torch.randint(3, VOCABULARY, (2, sum(CHUNKS)), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            full = model(input_ids=ids, use_cache=False).logits
            error = float((_chunked(model, ids) - full).abs().max())
            text = _greedy_matches(model, ids[:, :5])
    except Exception as problem:  # noqa: BLE001 (any of 200 models)
        return {**found, "status": "inexact", "reason": _line(problem)}
    if not error < bound:
        return {**found, "status": "inexact", "error": error, "reason": "chunks differ from the full pass"}
    if not text:
        return {**found, "status": "inexact", "error": error, "reason": "generate() differs from full passes"}
    return {**found, "status": "exact", "error": error}


def _randomize(model: PreTrainedModel) -> None:
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
        outputs.append(model(input_ids=part, past_key_values=cache, use_cache=True).logits)
        start += size
    return torch.cat(outputs, 1)


def _greedy_matches(model: PreTrainedModel, ids: Tensor) -> bool:
    steps = 8
    mask = torch.ones_like(ids)
    made = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=steps, min_new_tokens=steps, do_sample=False
    )
    logits = model(input_ids=made[:, :-1], use_cache=False).logits[:, ids.shape[1] - 1 :]
    chosen = logits.gather(2, made[:, ids.shape[1] :, None])[..., 0]
    return bool((logits.amax(-1) - chosen < 1e-3).all())


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:160] if text else ''}"


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(argument, measure(argument, 1e-4))
