"""BERT and RoBERTa with every method: padding, classification, embeddings, hybrids, saving without us."""

import json
import subprocess
import sys

import pytest
import torch
import transformers
from shaking import shake, small

from lineahead.convert.checkpoint import load_model, save_artifact
from lineahead.convert.replace import linearize
from lineahead.errors import InputError
from lineahead.plugins.augmented_attention.huggingface.attention import teacher, transfer
from lineahead.plugins.augmented_attention.huggingface.modeling import layers_of
from lineahead.plugins.augmented_attention.methods import PRESETS

VOCABULARY = 97
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 80, "initializer_range": 0.2,
    "pad_token_id": 1, "num_labels": 3, "type_vocab_size": 1,
}  # fmt: skip
FAMILIES = {"bert": ("BertConfig", "Bert"), "roberta": ("RobertaConfig", "Roberta")}


def softmax_encoder(family, task="ForSequenceClassification", **changes):
    torch.manual_seed(0)
    config, prefix = FAMILIES[family]
    made = getattr(transformers, config)(**{**SIZES, **changes})
    return getattr(transformers, prefix + task)(made).eval()


def encoder(name, family="bert", **options):
    model = softmax_encoder(family, **options)
    linearize(model, small(name))
    return shake(model)


def text(batch=3, length=40, seed=0):
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", PRESETS)
@torch.no_grad()
def test_a_padded_batch_is_each_text_alone(name, family):
    model, ids = encoder(name, family), text()
    assert all(layer.role == "encoder" for layer in layers_of(model.config))
    counts = (40, 23, 9)
    mask = torch.zeros_like(ids)
    for row, count in enumerate(counts):
        mask[row, :count] = 1
    ids = torch.where(mask.bool(), ids, 1)
    together = model(input_ids=ids, attention_mask=mask).logits
    for row, count in enumerate(counts):
        alone = model(input_ids=ids[row : row + 1, :count]).logits
        assert (together[row] - alone).abs().max() <= 2e-5, f"{count} tokens"
    with teacher():
        assert (model(input_ids=ids, attention_mask=mask).logits - together).abs().max() > 1e-3


@torch.no_grad()
def test_padding_on_the_left_and_its_eager_mask():
    softmax = softmax_encoder("bert")
    softmax.set_attn_implementation("eager")
    linearize(softmax, small("augmented"))
    for model in (shake(softmax), encoder("augmented")):
        ids, mask = text(2, 30), torch.ones(2, 30, dtype=torch.long)
        mask[1, :11] = 0
        position = torch.cat([torch.zeros(11, dtype=torch.long), torch.arange(19)])[None]
        got = model.base_model(
            input_ids=ids, attention_mask=mask, position_ids=torch.cat([torch.arange(30)[None], position])
        ).last_hidden_state
        want = model.base_model(input_ids=ids[1:, 11:]).last_hidden_state
        assert (got[1:, 11:] - want).abs().max() <= 2e-5


@torch.no_grad()
def test_every_token_sees_both_ends():
    model, ids = encoder("augmented", task="Model"), text(1, 40)
    before = model(input_ids=ids).last_hidden_state
    for place in (0, 20, 39):
        changed = ids.clone()
        changed[0, place] = 3 + (ids[0, place] - 2) % 90
        moved = (model(input_ids=changed).last_hidden_state - before).abs().amax(-1)[0]
        assert (moved > 1e-6).all(), place


@torch.no_grad()
def test_the_teacher_is_the_original_model():
    ids = text()
    want = softmax_encoder("roberta")(input_ids=ids).logits
    model = encoder("performer", "roberta")
    with teacher():
        assert (model(input_ids=ids).logits - want).abs().max() <= 1e-6


def test_transfer_reaches_every_layer_and_its_gradients():
    model, ids, seen = encoder("augmented"), text(2, 20), []
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0

    def record(call):
        with torch.enable_grad():
            (call.linear() - call.output).square().mean().backward()
        assert call.valid.tolist() == mask.bool().tolist()
        seen.append(call.module)

    with torch.no_grad(), transfer(record):
        model(input_ids=ids, attention_mask=mask)
    assert len(seen) == 2
    assert all(module.lineahead.conv.grad.abs().sum() > 0 for module in seen)


@torch.no_grad()
def test_some_layers_only():
    model, ids = softmax_encoder("bert"), text(2, 30)
    mask = torch.ones_like(ids)
    mask[1, 17:] = 0
    linearize(model, small("augmented"), layers=[1])
    assert model.config.lineahead["hybrid"]
    together = shake(model)(input_ids=ids, attention_mask=mask).logits
    assert (together[1] - model(input_ids=ids[1:, :17]).logits).abs().max() <= 2e-5
    with pytest.raises(InputError, match=r"layers are 0 to 1"):
        linearize(softmax_encoder("bert"), small("augmented"), layers=[5])


PROGRAM = """
import sys, torch, transformers
try:
    import lineahead
except ImportError:
    pass
else:
    sys.exit("lineahead was importable")
given = torch.load(sys.argv[2], weights_only=True)
model = getattr(transformers, sys.argv[4]).from_pretrained(sys.argv[1], trust_remote_code=True).eval()
torch.save({"out": model(**given)[0].detach()}, sys.argv[3])
"""


@pytest.mark.parametrize(
    ("name", "family", "task", "auto"),
    [
        ("augmented", "bert", "ForSequenceClassification", "AutoModelForSequenceClassification"),
        ("augmented-linformer", "roberta", "Model", "AutoModel"),
    ],
)
@torch.no_grad()
def test_an_artifact_works_without_lineahead(name, family, task, auto, tmp_path, without_lineahead):
    model, ids = encoder(name, family, task=task), text(2, 30)
    mask = torch.ones_like(ids)
    mask[0, 21:] = 0
    save_artifact(model, None, tmp_path / "artifact")
    saved = json.loads((tmp_path / "artifact" / "config.json").read_text())
    assert saved["auto_map"][auto] == "modeling_lineahead.LineaheadModel"
    torch.save({"input_ids": ids, "attention_mask": mask}, tmp_path / "given.pt")
    command = [
        sys.executable, "-c", PROGRAM, str(tmp_path / "artifact"), str(tmp_path / "given.pt"),
        str(tmp_path / "made.pt"), auto,
    ]  # fmt: skip
    done = subprocess.run(
        command, env=without_lineahead, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    want = model(input_ids=ids, attention_mask=mask)[0]
    assert (torch.load(tmp_path / "made.pt", weights_only=True)["out"] - want).abs().max() <= 1e-5
    loaded = load_model(tmp_path / "artifact")
    assert torch.equal(loaded(input_ids=ids, attention_mask=mask)[0], want)
