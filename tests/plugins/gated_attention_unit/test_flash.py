"""FLASH: causal, the same in pieces as whole, trainable, saved and loaded."""

import math

import pytest
import torch
from transformers import DynamicCache

from lineahead.errors import InputError, SettingsError
from lineahead.plugins.augmented_attention.huggingface.fixed_layer import CACHE
from lineahead.plugins.gated_attention_unit.attention import (
    GroupState,
    Heads,
    Terms,
    distance_buckets,
    laplace,
    mixed_chunk,
)
from lineahead.plugins.gated_attention_unit.config import FlashConfig
from lineahead.plugins.gated_attention_unit.modeling import FlashForCausalLM

SIZES = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "key_size": 16,
    "rotary_size": 8,
    "group_size": 6,
    "relative_buckets": 4,
    "relative_distance": 5,
    "eos_token_id": None,
    "pad_token_id": 0,
}


FORMS = {
    "FLASH": {},
    "local": {"parts": "local"},
    "global": {"parts": "global"},
    "augmented": {"conv_taps": 4},
    "augmented global": {"parts": "global", "conv_taps": 1},
}


@pytest.fixture(params=list(FORMS.values()), ids=list(FORMS))
def model(request):
    torch.manual_seed(0)
    made = FlashForCausalLM(FlashConfig(**SIZES, **request.param)).eval()
    for parameter in made.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return made


def ids(batch, length):
    return torch.randint(1, 61, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize(("far", "taps"), [(1.0, None), (0.0, None), (0.7, [0.3, -0.2, 0.5])])
def test_attention_equals_a_loop(local, far, taps):
    if not local and not far:
        pytest.skip("no attention at all")
    torch.manual_seed(0)
    terms = Terms(local=local, far=far, taps=None if taps is None else torch.tensor(taps))
    group, tokens = 4, 15
    heads = Heads(*(torch.randn(2, tokens, 5) for _ in range(4)))
    value, bias = torch.randn(2, tokens, 3), torch.randn(group)
    got, state = mixed_chunk(heads, value, bias, GroupState.empty(heads.far_key, value), group, terms)
    wide, values = [x.double() for x in heads], value.double()
    for b in range(2):
        for i in range(tokens):
            want = torch.zeros(3).double()
            for j in range(i + 1):
                if j // group == i // group:
                    score = wide[0][b, i] @ wide[1][b, j] / group + bias[i - j]
                    want += local * (
                        0.5
                        * (1 + math.erf((score - 0.5**0.5) / (0.25 / math.pi) ** 0.5 / 2**0.5))
                        * values[b, j]
                    )
                else:
                    want += far * (wide[2][b, i] @ wide[3][b, j]) / group * values[b, j]
            want += sum(tap * values[b, i - t] for t, tap in enumerate(taps or ()) if t <= i)
            torch.testing.assert_close(got[b, i].double(), want, atol=1e-5, rtol=1e-5)
    assert state.value.shape[1] == tokens % group


def test_laplace_meets_squared_relu_where_it_is_fitted():
    x = torch.tensor(0.5**0.5, requires_grad=True)
    laplace(x).backward()
    torch.testing.assert_close(laplace(x).detach(), x.detach() ** 2)
    torch.testing.assert_close(x.grad, 2 * x.detach())


def test_buckets_widen():
    buckets = distance_buckets(256, 32, 128).tolist()
    assert buckets[:17] == [*range(16), 16]
    assert buckets == sorted(buckets)
    assert buckets[127:] == [31] * 129


@torch.no_grad()
def test_no_token_sees_a_later_one(model):
    text = ids(1, 20)
    want = model(text).logits
    for place in (3, 6, 11, 17):
        other = text.clone()
        other[0, place:] = (other[0, place:] + 7) % 61
        got = model(other).logits
        assert torch.equal(got[:, :place], want[:, :place])
        assert not torch.allclose(got[:, place:], want[:, place:])


@torch.no_grad()
def test_augmentation_begins_as_the_local_term():
    """Its weight and its taps are zero at first; then each of them matters."""
    torch.manual_seed(0)
    augmented = FlashForCausalLM(FlashConfig(**SIZES, conv_taps=4, initializer_range=0.3)).eval()
    local = FlashForCausalLM(FlashConfig(**SIZES, parts="local")).eval()
    found = local.load_state_dict(augmented.state_dict(), strict=False)
    assert found.unexpected_keys == [f"model.layers.{i}.{name}" for i in (0, 1) for name in ("alpha", "taps")]
    text = ids(1, 20)
    before = augmented(text).logits
    assert torch.equal(before, local(text).logits)
    augmented.model.layers[0].taps += 0.1
    convolved = augmented(text).logits
    augmented.model.layers[0].alpha += 1
    assert not torch.allclose(before, convolved)
    assert not torch.allclose(convolved, augmented(text).logits)


@pytest.mark.parametrize("sizes", [[20], [1] * 20, [5, 1, 6, 8], [6, 6, 6, 2], [13, 7]])
@torch.no_grad()
def test_pieces_equal_the_whole(model, sizes):
    text, cache, parts = ids(2, 20), DynamicCache(), []
    for part in text.split(sizes, 1):
        parts.append(model(part, **{CACHE: cache}).logits)
    torch.testing.assert_close(torch.cat(parts, 1), model(text).logits, atol=1e-5, rtol=1e-5)
    assert max(layer.groups.value.shape[1] for layer in cache.layers) < 6


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beam"])
def test_generation_equals_no_cache(model, options):
    text = ids(2, 9)
    cached, plain = (
        model.generate(text, max_new_tokens=20, do_sample=False, use_cache=use, **options)
        for use in (True, False)
    )
    assert torch.equal(cached, plain)


def test_training_lowers_the_loss():
    torch.manual_seed(0)
    model = FlashForCausalLM(FlashConfig(**SIZES)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    text = torch.arange(1, 25).repeat(4, 2)
    losses = []
    for _ in range(60):
        loss = model(text, labels=text).loss
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 3.5
    assert losses[-1] < 0.5 * losses[0]


def test_saved_and_loaded(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = FlashForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(ids(1, 15)).logits, model(ids(1, 15)).logits)
    assert loaded.config.group_size == 6


def test_what_it_cannot_do_is_refused(model):
    mask = torch.tensor([[0, 1, 1]])
    with pytest.raises(InputError, match="padding before text"):
        model(ids(1, 3), attention_mask=mask)
    cache = DynamicCache()
    model(ids(1, 9), **{CACHE: cache})
    with pytest.raises(InputError, match="cannot be rolled back"):
        cache.crop(-2)
    for wrong, named in (
        ({"rotary_size": 7}, "rotary_size=7"),
        ({"parts": "none"}, "parts='none'"),
        ({"conv_taps": -1}, "conv_taps=-1"),
    ):
        with pytest.raises(SettingsError, match=named):
            FlashConfig(**wrong)


def test_the_studys_model_has_its_size():
    with torch.device("meta"):
        model = FlashForCausalLM(FlashConfig())
    assert 120e6 < sum(x.numel() for x in model.parameters()) < 130e6
