"""`custom_generate`: the text of plain decoding, token for token, in fewer calls of the model."""

import ast
import dataclasses
import inspect
import sys

import pytest
import torch
from transformers import set_seed

from lineahead.convert.drafts.medusa import MedusaConfig, MedusaHeads, save_heads
from lineahead.plugins.augmented_attention.huggingface import speculative_generate
from lineahead.plugins.augmented_attention.huggingface.fixed_layer import CACHE
from lineahead.plugins.augmented_attention.huggingface.speculative_generate import generate
from lineahead.plugins.augmented_attention.methods import PRESETS


@pytest.fixture(params=["softmax-hedgehog", "augmented"])
def method(request):
    """Two methods are enough: the loop does not know what it decodes."""
    return dataclasses.replace(PRESETS[request.param], window=8)


@pytest.fixture
def calls():
    """How often a model is called within."""

    def count(model, run):
        seen = []
        hook = model.register_forward_pre_hook(lambda *_: seen.append(1))
        result = run()
        hook.remove()
        return result, len(seen)

    return count


@pytest.fixture
def with_heads(tmp_path):
    """Give a model draft heads in the folder it seems to come from."""

    def give(model, weight=0.0):
        rows = model.get_output_embeddings().weight
        config = MedusaConfig(heads=3, hidden_size=rows.shape[1], vocabulary=rows.shape[0], top=4)
        heads = MedusaHeads(config, torch.arange(rows.shape[0]))
        heads.weight.data += weight * torch.randn(
            heads.weight.shape, generator=torch.Generator().manual_seed(1)
        )
        save_heads(heads, tmp_path)
        model.config._name_or_path = str(tmp_path)
        return model

    return give


@pytest.mark.parametrize(
    ("family", "drafter"),
    [("llama", "lookup"), ("llama", "medusa"), ("llama", "auto"), ("gpt2", "auto"), ("gemma3", "lookup")],
)
def test_greedy_text_is_plain_text(method, linear_model, tokens, with_heads, family, drafter):
    model, ids = with_heads(linear_model(method, family)), tokens(1, 20).repeat(1, 3)
    plain = model.generate(ids, max_new_tokens=40, do_sample=False)
    assert torch.equal(
        generate(model, inputs=ids, drafter=drafter, max_new_tokens=40, do_sample=False), plain
    )


def test_right_drafts_save_calls_and_wrong_ones_cost_no_token(
    method, linear_model, tokens, calls, monkeypatch
):
    model, ids = linear_model(method), tokens(1, 40)
    plain = model.generate(ids, max_new_tokens=60, do_sample=False)

    def mostly_right(row, most):
        draft = plain[0, len(row) : len(row) + most].clone()
        if len(row) % 3 == 0:
            draft[len(draft) // 2 :] = 5
        return draft

    monkeypatch.setattr(speculative_generate, "_look_up", mostly_right)
    made, steps = calls(
        model,
        lambda: generate(model, inputs=ids, drafter="lookup", max_new_tokens=60, do_sample=False),
    )
    assert torch.equal(made, plain)
    assert 12 <= steps <= 30


@pytest.mark.parametrize("seed", [0, 1])
def test_sampled_text_is_plain_text_of_the_same_seed(method, linear_model, tokens, with_heads, seed):
    model, ids = with_heads(linear_model(method), 0.3), tokens(2, 40)
    options = {"do_sample": True, "temperature": 0.7, "top_k": 5, "max_new_tokens": 40}
    set_seed(seed)
    plain = model.generate(ids, **options)
    set_seed(seed)
    assert torch.equal(generate(model, inputs=ids, **options), plain)


def test_rows_of_a_batch_end_where_they_end_alone(method, linear_model, tokens, with_heads):
    model, ids = with_heads(linear_model(method)), tokens(3, 40)
    mask = torch.ones_like(ids)
    mask[0, :17], ids[0, :17] = 0, 0
    free = model.generate(ids, attention_mask=mask, max_new_tokens=40, do_sample=False)
    ends = [int(free[0, 46]), int(free[1, 60])]
    options = {
        "attention_mask": mask,
        "max_new_tokens": 40,
        "do_sample": False,
        "eos_token_id": ends,
        "pad_token_id": 0,
    }
    plain = model.generate(ids, **options)
    assert plain[0, -1] == 0 or plain.shape[1] < 80
    assert torch.equal(generate(model, inputs=ids, **options), plain)


def test_processors_streams_and_caches(method, linear_model, tokens):
    class Stream:
        pieces, ended = (), False

        def put(self, value):
            self.pieces = (*self.pieces, *value.flatten().tolist())

        def end(self):
            self.ended = True

    model, ids, stream = linear_model(method), tokens(1, 20).repeat(1, 3), Stream()
    options = {"do_sample": False, "repetition_penalty": 1.3, "no_repeat_ngram_size": 4}
    plain = model.generate(ids, max_new_tokens=30, **options)
    made = generate(
        model, inputs=ids, max_new_tokens=30, streamer=stream, return_dict_in_generate=True, **options
    )
    assert torch.equal(made.sequences, plain)
    assert list(stream.pieces) == plain[0].tolist()
    assert stream.ended
    given = {CACHE: made[CACHE], "attention_mask": torch.ones_like(made.sequences)}
    more = generate(model, inputs=made.sequences, max_new_tokens=20, **given, **options)
    assert torch.equal(more, model.generate(ids, max_new_tokens=50, **options))


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 2},
        {"drafter": "magic"},
        {"draft_tokens": 0},
        {"use_cache": False},
        {"drafter": "medusa"},
        {"output_scores": True, "return_dict_in_generate": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_it_cannot_do_is_refused(method, linear_model, tokens, tmp_path, options):
    model = linear_model(method)
    model.config._name_or_path = str(tmp_path)
    with pytest.raises(ValueError, match=next(iter(options))):
        generate(model, inputs=tokens(1, 9), max_new_tokens=3, do_sample=False, **options)


def test_it_imports_torch_and_transformers_only():
    tree = ast.parse(inspect.getsource(speculative_generate))
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) == {
        "torch",
        "transformers",
        "safetensors",
    }
