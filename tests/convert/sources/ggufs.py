"""Writes tiny transformers models as GGUF files, by the gguf package's names and llama.cpp's conventions."""

import gguf
import numpy as np

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
}


def interleave(values, heads):
    """What llama.cpp's converter does to the query and key rows of Llama models."""
    shaped = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return shaped.swapaxes(1, 2).reshape(values.shape)


def write(path, model, tokenizer=None, *, change=None, kind=None, factors=None, extra=(), pre="smollm"):
    """Write `model`; `change(name, array)` may replace values, `kind(name)` choose a ggml type."""
    config = model.config
    arch = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_license("mit")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(
        config.head_dim
        if getattr(config, "head_dim", None)
        else config.hidden_size // config.num_attention_heads
    )
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    if arch is gguf.MODEL_ARCH.GEMMA3:
        writer.add_sliding_window(config.sliding_window)
    for key, value in extra:
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    if tokenizer is not None:
        add_tokenizer(writer, tokenizer, pre)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    tensors = {} if factors is None else {"rope_freqs.weight": np.asarray(factors, np.float32)}
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.float().numpy()
        if arch is gguf.MODEL_ARCH.LLAMA and "q_proj" in key:
            values = interleave(values, config.num_attention_heads)
        if arch is gguf.MODEL_ARCH.LLAMA and "k_proj" in key:
            values = interleave(values, config.num_key_value_heads)
        if arch is gguf.MODEL_ARCH.GEMMA3 and key.endswith("norm.weight"):
            values = values + 1
        tensors[names.get_name(key, try_suffixes=(".weight", ".bias"))] = values
    for name, values in tensors.items():
        values = np.array(change(name, values) if change else values)
        chosen = kind(name) if kind else None
        if chosen is None:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tokenizer(writer, tokenizer, pre):
    import json

    core = json.loads(tokenizer.backend_tokenizer.to_str())
    special = {entry["content"] for entry in core["added_tokens"]}
    tokens = [token for token, _ in sorted(core["model"]["vocab"].items(), key=lambda pair: pair[1])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in core["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_unk_token_id(tokenizer.unk_token_id)
    writer.add_add_bos_token(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
