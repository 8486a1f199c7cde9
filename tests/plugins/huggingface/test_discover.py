"""Finding attention layers, and refusing by name what cannot be converted."""

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from lineahead.errors import ArchitectureError
from lineahead.plugins.augmented_attention.huggingface.discover import discover
from lineahead.plugins.augmented_attention.schema import LayerShape

SMALL = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def build(kind, **sizes):
    return AutoModelForCausalLM.from_config(getattr(transformers, kind)(**sizes))


@pytest.mark.parametrize(
    ("family", "name", "kv_heads"),
    [
        ("llama", "model.layers.1.self_attn", 2),
        ("gemma3", "model.layers.1.self_attn", 2),
        ("gpt2", "transformer.h.1.attn", 4),
        ("opt", "model.decoder.layers.1.self_attn", 4),
        ("gpt_neox", "gpt_neox.layers.1.attention", 4),
        ("phi3", "model.layers.1.self_attn", 2),
    ],
)
def test_layers_and_their_shapes(softmax_model, family, name, kv_heads):
    found = discover(softmax_model(family))
    assert [layer.index for layer in found] == [0, 1]
    assert found[1].name == name
    assert found[1].shape == LayerShape(heads=4, kv_heads=kv_heads, head_dim=8, value_dim=8)


def test_value_heads_of_another_width():
    heads = {"num_key_value_heads": 4, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6}
    ranks = {"q_lora_rank": 16, "kv_lora_rank": 16}
    experts = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2}
    dense = {"first_k_dense_replace": 2, "intermediate_size": 48, "moe_intermediate_size": 16}
    model = build("DeepseekV3Config", **SMALL, **heads, **ranks, **experts, **dense)
    assert discover(model)[0].shape == LayerShape(heads=4, kv_heads=4, head_dim=12, value_dim=6)


def test_the_model_is_left_as_it_was(softmax_model, tokens, full_pass):
    model, ids = softmax_model("gemma3").train(), tokens(1, 20)
    before = model.config._attn_implementation
    discover(model)
    assert model.training
    assert model.config._attn_implementation == before
    assert torch.equal(full_pass(model.eval(), ids), full_pass(softmax_model("gemma3"), ids))


@pytest.mark.parametrize(
    ("kind", "sizes", "reason"),
    [
        (
            "BloomConfig",
            {"vocab_size": 97, "hidden_size": 32, "n_layer": 2, "n_head": 4},
            "BloomForCausalLM never calls",
        ),
        (
            "MambaConfig",
            {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2},
            "recurrent state of its own",
        ),
        ("DiffLlamaConfig", {**SMALL, "intermediate_size": 48}, "attends 2 times per layer"),
        ("BertConfig", {**SMALL, "intermediate_size": 48}, "not causal"),
    ],
)
def test_refused_by_name(kind, sizes, reason):
    with pytest.raises(ArchitectureError, match=reason) as caught:
        discover(build(kind, **sizes))
    assert "lineahead architectures" in caught.value.hint
