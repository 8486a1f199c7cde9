"""T5 and BART: two-sided encoder, causal decoder, cross attention over a summary; caches, beams, saving."""

import pytest
import torch
import transformers
from shaking import shake, small

from lineahead.convert.checkpoint import load_model, save_artifact
from lineahead.convert.replace import linearize, linearize_roles
from lineahead.errors import ArchitectureError, SettingsError
from lineahead.plugins.augmented_attention.huggingface.attention import teacher
from lineahead.plugins.augmented_attention.huggingface.cache import StateLayer
from lineahead.plugins.augmented_attention.huggingface.fixed_layer import CACHE
from lineahead.plugins.augmented_attention.huggingface.modeling import layers_of
from lineahead.plugins.augmented_attention.huggingface.summary import SummaryLayer

VOCABULARY = 61
SPECIAL = {"vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
CONFIGS = {
    "t5": ("T5Config", {
        "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "initializer_factor": 1.0,
    }),
    "bart": ("BartConfig", {
        "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "bos_token_id": 2,
        "max_position_embeddings": 128, "init_std": 0.3, "forced_eos_token_id": None,
    }),
}  # fmt: skip
METHODS = ("augmented", "softmax-hedgehog", "performer", "augmented-relu", "augmented-transnormer")


def softmax_model(family, task="ForConditionalGeneration", **changes):
    kind, sizes = CONFIGS[family]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**{**SPECIAL, **sizes, **changes})
    prefix = kind.removesuffix("Config")
    return getattr(transformers, prefix + task)(config).eval()


def linear_model(name, family="t5", **options):
    model = softmax_model(family, **options)
    linearize(model, small(name))
    return shake(model)


def source(batch=2, length=30, seed=0):
    ids = torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[1, 19:] = 0
    return {"input_ids": torch.where(mask.bool(), ids, 0), "attention_mask": mask}


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_steps_give_the_full_pass(name, family):
    model, given = linear_model(name, family), source()
    roles = [layer.role for layer in layers_of(model.config)]
    assert roles == ["encoder"] * 2 + ["decoder"] * 2 + ["cross"] * 2
    target = torch.randint(3, VOCABULARY, (2, 27), generator=torch.Generator().manual_seed(3))
    full = model(**given, decoder_input_ids=target, use_cache=False).logits
    with teacher():
        assert (model(**given, decoder_input_ids=target, use_cache=False).logits - full).abs().max() > 1e-2
    outputs, cache = [], None
    for part in target.split([5, 1, 9, 1, 11], 1):
        result = model(**given, decoder_input_ids=part, **{CACHE: cache}, use_cache=True)
        outputs.append(result.logits)
        cache = result[CACHE]
    assert (torch.cat(outputs, 1) - full).abs().max() <= 2e-4
    assert all(isinstance(layer, StateLayer) for layer in cache.self_attention_cache.layers)
    assert all(isinstance(layer, SummaryLayer) for layer in cache.cross_attention_cache.layers)
    alone = {key: x[1:, :19] for key, x in given.items()}
    assert (model(**alone, decoder_input_ids=target[1:]).logits - full[1:]).abs().max() <= 2e-4


@pytest.mark.parametrize("family", CONFIGS)
@torch.no_grad()
def test_generation_and_its_constant_size(family):
    model, given = linear_model("augmented", family), source()
    wanted = {"max_new_tokens": 40, "min_new_tokens": 40, "do_sample": False}
    greedy = model.generate(**given, **wanted)
    assert torch.equal(greedy, model.generate(**given, **wanted, use_cache=False))
    alone = {key: x[1:, :19] for key, x in given.items()}
    assert torch.equal(model.generate(**alone, **wanted), greedy[1:])
    beams = model.generate(**given, max_new_tokens=15, num_beams=3, do_sample=False)
    again = model.generate(**given, max_new_tokens=15, num_beams=3, do_sample=False, use_cache=False)
    assert torch.equal(beams, again)
    sizes = set()
    for length, steps in ((10, 9), (30, 40), (60, 90)):
        ids = torch.full((1, length), 5)
        result = model(input_ids=ids, decoder_input_ids=torch.full((1, steps), 7), use_cache=True)
        cache = model(input_ids=ids, decoder_input_ids=ids[:, :1], **{CACHE: result[CACHE]})[CACHE]
        layers = (*cache.self_attention_cache.layers, *cache.cross_attention_cache.layers)
        sizes.add(sum(layer.nbytes for layer in layers))
    assert len(sizes) == 1


@torch.no_grad()
def test_rollback():
    model, given = linear_model("augmented"), source()
    target = torch.randint(3, VOCABULARY, (2, 20), generator=torch.Generator().manual_seed(3))
    full = model(**given, decoder_input_ids=target, use_cache=False).logits
    cache = model(**given, decoder_input_ids=target[:, :9], use_cache=True)[CACHE]
    wrong = torch.full((2, 6), 11)
    cache = model(**given, decoder_input_ids=wrong, **{CACHE: cache})[CACHE]
    cache.crop(-6)
    rest = model(**given, decoder_input_ids=target[:, 9:], **{CACHE: cache}).logits
    assert (rest - full[:, 9:]).abs().max() <= 2e-4


@torch.no_grad()
def test_softmax_cross_attention_can_stay():
    model, given = softmax_model("t5"), source()
    with pytest.raises(SettingsError, match="cross attention needs a sum"):
        linearize(model, small("flash-local"))
    layers = linearize_roles(model, small("flash-local"), cross=False)
    assert {layer.role for layer in layers} == {"encoder", "decoder"}
    shake(model)
    wanted = {"max_new_tokens": 30, "min_new_tokens": 30, "do_sample": False}
    assert torch.equal(model.generate(**given, **wanted), model.generate(**given, **wanted, use_cache=False))


def test_linformer_is_refused_for_the_decoder():
    with pytest.raises(SettingsError, match="linformer"):
        linearize(softmax_model("bart"), small("linformer"))


@pytest.mark.parametrize("family", CONFIGS)
@torch.no_grad()
def test_saved_and_loaded(family, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    model, given = linear_model("augmented", family), source()
    save_artifact(model, None, tmp_path / f"artifact-{family}")
    remote = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        tmp_path / f"artifact-{family}", trust_remote_code=True
    ).eval()
    assert type(remote).__module__ != type(model).__module__
    want = model.generate(**given, max_new_tokens=20, do_sample=False)
    for other in (remote, load_model(tmp_path / f"artifact-{family}")):
        assert torch.equal(other.generate(**given, max_new_tokens=20, do_sample=False), want)


@torch.no_grad()
def test_parts_with_a_copy_of_the_config_are_linear_where_transformers_skips_them(tmp_path, monkeypatch):
    model, given = linear_model("augmented", "t5"), source()
    want = model(**given, decoder_input_ids=given["input_ids"]).logits
    model.save_pretrained(tmp_path)

    def own_config_only(self, name):
        self.config._attn_implementation_internal = name

    monkeypatch.setattr(transformers.PreTrainedModel, "set_attn_implementation", own_config_only)
    for other in (linear_model("augmented", "t5"), load_model(tmp_path)):
        assert len({id(part.config) for part in (other, other.encoder, other.decoder)}) == 3
        assert torch.equal(other(**given, decoder_input_ids=given["input_ids"]).logits, want)


def test_a_class_that_computes_attention_itself_is_refused_at_load(tmp_path, monkeypatch):
    linear_model("augmented", "t5").save_pretrained(tmp_path)
    own = transformers.T5ForConditionalGeneration
    monkeypatch.setattr(own, "_can_set_attn_implementation", classmethod(lambda cls: False))
    with pytest.raises(ArchitectureError, match=f"{transformers.__version__} computes attention in T5"):
        load_model(tmp_path)


def test_classification_with_a_decoder_behind_an_encoder():
    model = softmax_model("bart", "ForSequenceClassification", num_labels=3)
    linearize(model, small("augmented"))
    ids = torch.tensor([[5, 6, 7, 8, 1]])
    shake(model)(input_ids=ids, labels=torch.tensor([2])).loss.backward()
    grads = [weight.grad for name, weight in model.named_parameters() if name.endswith(".lineahead.conv")]
    assert len(grads) == 4
    assert all(grad.abs().sum() > 0 for grad in grads)
