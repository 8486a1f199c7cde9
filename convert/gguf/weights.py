"""Configs and weights of GGUF models as transformers has them: Llama, Mistral, Qwen2, Qwen3, Gemma 3 text."""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lineahead.convert.gguf.file import GgufFile
from lineahead.errors import ArchitectureError, CheckpointError

Array = np.ndarray[Any, np.dtype[np.float32]]

_OUTER = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_QK_NORM = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_GEMMA3 = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_ROPE_FACTORS = "rope_freqs.weight"
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one ggml architecture maps to one of transformers.

    Attributes:
        model_type: transformers' name.
        block: names of a block's tensors.
        extra: config entries that only this family has.
        interleaved: whether rotary pairs are adjacent rows in the file, not half a head apart.
        norm_offset: what the file adds to the weights of normalisations.
    """

    model_type: str
    block: dict[str, str]
    extra: Callable[[GgufFile], dict[str, Any]]
    interleaved: bool = False
    norm_offset: float = 0.0


def _llama(file: GgufFile) -> dict[str, Any]:
    biased = "blk.0.attn_q.bias" in file.tensors
    return {"attention_bias": biased, "mlp_bias": False, "rope_parameters": _rope(file)}


def _qwen2(file: GgufFile) -> dict[str, Any]:
    return {"use_sliding_window": False, "rope_parameters": _rope(file)}


def _qwen3(file: GgufFile) -> dict[str, Any]:
    return {"use_sliding_window": False, "attention_bias": False, "rope_parameters": _rope(file)}


def _gemma3(file: GgufFile) -> dict[str, Any]:
    layers, dim = file.need("block_count"), file.need("attention.key_length")
    if file.get("rope.scaling.type", "none") not in ("none", "linear"):
        raise _scaled_rope(file)
    far = {"rope_type": "default", "rope_theta": file.get("rope.freq_base", 1e6)}
    if file.get("rope.scaling.type") == "linear":
        far = {**far, "rope_type": "linear", "factor": file.need("rope.scaling.factor")}
    # The 27B model alone scales queries by the width per head; files do not say so.
    scalar = file.need("embedding_length") // file.need("attention.head_count") if layers == 62 else dim
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scalar,
        "sliding_window": file.need("attention.sliding_window"),
        "layer_types": ["sliding_attention" if (i + 1) % 6 else "full_attention" for i in range(layers)],
        "rope_parameters": {
            "full_attention": far,
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
        "final_logit_softcapping": file.get("final_logit_softcapping"),
    }


FAMILIES = {
    "llama": Family(model_type="llama", block=_BLOCK, extra=_llama, interleaved=True),
    "qwen2": Family(model_type="qwen2", block=_BLOCK, extra=_qwen2),
    "qwen3": Family(model_type="qwen3", block=_BLOCK | _QK_NORM, extra=_qwen3),
    "gemma3": Family(
        model_type="gemma3_text", block=_BLOCK | _QK_NORM | _GEMMA3, extra=_gemma3, norm_offset=1.0
    ),
}


def family(file: GgufFile) -> Family:
    """The family of a file.

    Raises:
        ArchitectureError: when there is none.
    """
    if file.architecture not in FAMILIES:
        raise ArchitectureError(
            f"{file.path}: GGUF architecture {file.architecture!r} is not known",
            hint=f"Use the original checkpoint folder; GGUF is read for {', '.join(FAMILIES)}.",
        )
    return FAMILIES[file.architecture]


def config_entries(file: GgufFile) -> dict[str, Any]:
    """The model's ``config.json`` as a dictionary, ``model_type`` included.

    Raises:
        ArchitectureError: when the architecture, or its kind of scaled RoPE, is not known.
        CheckpointError: when a key or the embedding is missing.
    """
    kind = family(file)
    if "token_embd.weight" not in file.tensors:
        raise CheckpointError(f"{file.path}: no tensor 'token_embd.weight'", hint="Use a complete file.")
    heads, hidden = file.need("attention.head_count"), file.need("embedding_length")
    tokens = {
        f"{role}_token_id": file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    return {
        "model_type": kind.model_type,
        "hidden_size": hidden,
        "intermediate_size": file.need("feed_forward_length"),
        "num_hidden_layers": file.need("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": file.get("attention.head_count_kv", heads),
        "head_dim": file.get("attention.key_length", hidden // heads),
        "max_position_embeddings": file.need("context_length"),
        "rms_norm_eps": float(f"{file.need('attention.layer_norm_rms_epsilon'):.6g}"),
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
        **tokens,
        **kind.extra(file),
    }


def state_dict(file: GgufFile, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every weight under transformers' name, dequantised one at a time.

    Raises:
        ArchitectureError: naming the tensors that have no place in the model.
        CheckpointError: when a tensor is damaged.
    """
    return dict(_weights(file, family(file), dtype))


def _weights(file: GgufFile, kind: Family, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    names = {name: _rename(name, kind.block) for name in file.tensors if name != _ROPE_FACTORS}
    unknown = [name for name, target in names.items() if target is None]
    if unknown:
        raise ArchitectureError(
            f"{file.path}: {file.architecture} tensor {unknown[0]!r} has no place ({len(unknown)} in all)",
            hint="Use the original checkpoint folder.",
        )
    for name, target in names.items():
        values = file.read(name)
        if kind.interleaved and ".attn_q." in name:
            values = _half_split(file, name, values, file.need("attention.head_count"))
        if kind.interleaved and ".attn_k." in name:
            heads = file.need("attention.head_count")
            values = _half_split(file, name, values, file.get("attention.head_count_kv", heads))
        if kind.norm_offset and name.endswith("norm.weight"):
            values = values - np.float32(kind.norm_offset)
        yield str(target), torch.from_numpy(np.ascontiguousarray(values)).to(dtype)


def _rename(name: str, block: dict[str, str]) -> str | None:
    parts = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if parts is None:
        return None
    layer, stem, suffix = parts.groups()
    if layer is None:
        return f"{_OUTER[stem]}.{suffix}" if stem in _OUTER else None
    return f"model.layers.{layer}.{block[stem]}.{suffix}" if stem in block else None


def _half_split(file: GgufFile, name: str, values: Array, heads: int) -> Array:
    """Undo ggml's reordering of a head's rows: pairs (2i, 2i + 1) become rows i and i + half."""
    rows = values.shape[0]
    if rows % (2 * heads):
        raise CheckpointError(
            f"{file.path}: {name!r} has {rows} rows for {heads} heads", hint="Use another file."
        )
    pairs = values.reshape(heads, rows // heads // 2, 2, -1)
    return np.concatenate([pairs[:, :, 0], pairs[:, :, 1]], 1).reshape(values.shape)


def _rope(file: GgufFile) -> dict[str, Any]:
    plain = {"rope_type": "default", "rope_theta": file.get("rope.freq_base", 10000.0)}
    if file.get("rope.scaling.type", "none") == "linear":
        return {**plain, "rope_type": "linear", "factor": file.need("rope.scaling.factor")}
    if file.get("rope.scaling.type", "none") != "none":
        raise _scaled_rope(file)
    if _ROPE_FACTORS not in file.tensors:
        return plain
    factors = file.read(_ROPE_FACTORS)
    if np.all(factors == 1):
        return plain
    scaled = {**plain, "rope_type": "llama3", "factor": round(float(factors.max()), 4), **_LLAMA3}
    if not np.allclose(factors, _llama3_factors(scaled, len(factors)), rtol=1e-4):
        raise _scaled_rope(file)
    return scaled


def _llama3_factors(rope: dict[str, Any], count: int) -> Array:
    """Divisors of the rotary frequencies of Llama 3.1 and later (arXiv:2407.21783, and its model code)."""
    wavelength = 2 * math.pi * rope["rope_theta"] ** (np.arange(count) / count)
    turns = rope["original_max_position_embeddings"] / wavelength
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return np.asarray(1 / ((1 - kept) / rope["factor"] + kept), np.float32)


def _scaled_rope(file: GgufFile) -> ArchitectureError:
    kind = file.get("rope.scaling.type", _ROPE_FACTORS)
    return ArchitectureError(
        f"{file.path}: scaled RoPE ({kind}) is not read from GGUF files",
        hint="Use the original checkpoint folder.",
    )
