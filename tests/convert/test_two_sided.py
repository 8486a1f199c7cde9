"""The command line for encoders and encoder-decoders: artifacts that load again, and refusals by name."""

import json

import pytest
import tiny_two_sided as two_sided
import torch
import transformers

from lineahead.convert.checkpoint import load_model
from lineahead.convert.finetune import METRICS_FILE
from lineahead.convert.source import load_source
from lineahead.plugins.augmented_attention.huggingface.modeling import layers_of
from lineahead.recipes.manifest import read_manifest

HEADS = {
    "classifier": ("Bert", "ForSequenceClassification", "AutoModelForSequenceClassification"),
    "embeddings": ("Bert", "Model", "AutoModel"),
    "masked": ("Roberta", "ForMaskedLM", "AutoModelForMaskedLM"),
    "t5": ("T5", "ForConditionalGeneration", "AutoModelForSeq2SeqLM"),
    "bart": ("Bart", "ForConditionalGeneration", "AutoModelForSeq2SeqLM"),
    "read": ("Bart", "ForSequenceClassification", "AutoModelForSequenceClassification"),
}
RECIPE = {"preset": "augmented", "window": 8, "conv_taps": 4}
IDS = torch.tensor([[5, 9, 3, 7, 14, 21, 4, 8, 8, 30, 12, 6, 1]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("two-sided")


@pytest.fixture(scope="module")
def artifacts(folder, text):
    """One artifact of each kind, converted from the command line."""
    from click.testing import CliRunner

    from lineahead.cli import main

    recipe = folder / "recipe.yaml"
    stage = {"kind": "transfer", "steps": 20, "batch_size": 4, "sequence_length": 32, "learning_rate": 0.01}
    recipe.write_text(json.dumps({"method": RECIPE, "data": {"files": [str(text)]}, "stages": [stage]}))
    made = {}
    for name, (family, head, _) in HEADS.items():
        source = two_sided.save(folder / f"{name}-softmax", family, head)
        made[name] = folder / name
        done = CliRunner().invoke(main, ["convert", str(source), str(made[name]), "--recipe", str(recipe)])
        assert done.exit_code == 0, done.output
    return made


def said(model, name):
    """What the model says of a text: class scores, logits, or hidden states."""
    inputs = {"decoder_input_ids": IDS} if name in ("t5", "bart") else {}
    with torch.no_grad():
        result = model.eval()(input_ids=IDS, **inputs)
    return result.last_hidden_state if name == "embeddings" else result.logits


@pytest.mark.parametrize("name", HEADS)
def test_an_artifact_loads_again_with_its_head(name, artifacts, folder, tmp_path, monkeypatch):
    """By this package, and by transformers with the code in the folder; the softmax weights are in it."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path))
    family, head, auto = HEADS[name]
    own = load_model(artifacts[name])
    remote = getattr(transformers, auto).from_pretrained(artifacts[name], trust_remote_code=True)
    assert type(own).__name__ == type(remote).__name__ == f"Lineahead{family}{head}"
    assert type(own).__module__ != type(remote).__module__
    torch.testing.assert_close(said(remote, name), said(own, name), rtol=0, atol=0)
    softmax = load_source(folder / f"{name}-softmax").model
    assert type(softmax).__name__ == family + head
    for key, weight in softmax.state_dict().items():
        assert torch.equal(own.state_dict()[key], weight), key
    assert (said(softmax, name) - said(own, name)).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["classifier", "t5"])
def test_doctor_and_manifest_know_the_roles(name, artifacts, run):
    model, made = load_model(artifacts[name]), read_manifest(artifacts[name]).model
    for layer in layers_of(model.config):
        assert made.role_settings.get(layer.role, made.settings) == layer.settings.as_dict()
    assert (made.linear_layers, made.layers) == ((0, 1), 2)
    assert (made.state_bytes > 0) == (name == "t5")
    found = run("doctor", artifacts[name], "--json")
    checks = {one["check"]: one for one in json.loads(found.stdout)["findings"]}
    assert all(checks[one]["status"] == "ok" for one in ("manifest", "config.json", "weights", "tokenizer"))
    assert "exports" not in checks


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("embeddings", {"training": {"encoder", "batch", "left padding"}}),
        ("bart", {"training": {"encoder", "cross attention"}, "step": {"chain", "tree", "cross attention"}}),
    ],
)
def test_conformance(name, wanted, artifacts, run):
    forms = [part for form in wanted for part in ("--form", form)]
    found = run("conformance", artifacts[name], *forms, "--json")
    cells = json.loads(found.stdout)["cells"]
    assert found.exit_code == 0, [cell for cell in cells if cell["status"] == "failed"]
    for form, scenarios in wanted.items():
        ok = {cell["scenario"] for cell in cells if (cell["form"], cell["status"]) == (form, "ok")}
        assert scenarios <= ok


def test_an_encoder_learns_by_attention_transfer(artifacts, run):
    before = load_model(artifacts["classifier"]).state_dict()
    found = run("finetune", artifacts["classifier"], "--device", "cpu", "--json")
    assert found.exit_code == 0, found.output
    curve = [json.loads(line)["loss"] for line in (artifacts["classifier"] / METRICS_FILE).open()]
    assert curve[-1] < 0.7 * curve[0]
    changed = {
        key
        for key, weight in load_model(artifacts["classifier"]).state_dict().items()
        if not torch.equal(weight, before[key])
    }
    assert changed
    assert all(".lineahead." in key for key in changed)


REFUSALS = {
    "export onnx {t5}": "is an encoder-decoder: export works on decoders only",
    "export onnx {masked}": "is an encoder: export works on decoders only",
    "draft {t5}": "a draft works on decoders only",
    "eval {masked} {text}": "is an encoder: perplexity works on decoders only",
    "finetune {t5} --device cpu": "fine-tuning by transfer works on decoders only",
    "finetune {masked} data.files=[] data.samples={{}}": "training on its own text",
    "finetune {masked} --recipe smoke": "fine-tuning by distill and transfer works on decoders only",
    "generate {classifier} -p hello": "is an encoder: it writes no text",
    "generate {t5} -p hello": "the onnxruntime backend does not run it",
    "generate {read} -p hello --backend eager": "has no output embeddings",
    "conformance {read}": "says no logits of tokens",
    "bench {t5}": "bench works on decoders only",
    "endurance {t5} --backend eager": "endurance works on decoders only",
    "serve {t5} --backend eager": "serving works on decoders only",
    "prefix {t5} --backend eager -f {text} -o {state}": "a saved prefix works on decoders only",
    "verify {t5} --backend eager --certificate": "a certificate works on decoders only",
    "convert {source} {state} layers=[0]": "converted all or none",
    "convert {source} {state} --keep-softmax 1": "converted all or none",
    "convert {source} {state} --keep-softmax all": "converted all or none",
    "convert {source} {state} method.preset=linformer": "no causal form",
}


@pytest.mark.parametrize("command", REFUSALS)
def test_what_they_cannot_do_is_refused_by_name(command, artifacts, folder, run, text, tmp_path):
    places = {**artifacts, "text": text, "state": tmp_path / "out", "source": folder / "t5-softmax"}
    found = run(*command.format(**places).split())
    assert found.exit_code not in (0, 1)
    assert REFUSALS[command] in " ".join(found.stderr.split())
    assert "Hint:" in found.stderr


@pytest.mark.parametrize(
    ("name", "says", "not_says"),
    [
        (
            "classifier",
            ["AutoModelForSequenceClassification", "keeps no state"],
            ["generate", "eval", "onnx/"],
        ),
        ("embeddings", ["AutoModel,", "# hidden states"], ["generate", "perplexit"]),
        ("t5", ["AutoModelForSeq2SeqLM", "verify model --backend eager"], ["without torch", "eval", "onnx/"]),
    ],
)
def test_the_card_says_what_the_kind_can_do(name, says, not_says, artifacts, run):
    assert run("card", artifacts[name], "me/model", "--license", "mit").exit_code == 0
    text = (artifacts[name] / "README.md").read_text()
    assert all(word in text for word in says)
    assert not any(word in text for word in not_says)
    assert "\n\n## How it was made" in text


def test_heads(tmp_path, run):
    """Pretraining heads keep their language model; other heads are refused; linformer converts an encoder."""
    source = two_sided.save(tmp_path / "pretraining", "Bert", "ForPreTraining")
    assert type(load_source(source).model).__name__ == "BertForMaskedLM"
    assert run("convert", source, tmp_path / "artifact", "method.preset=linformer").exit_code == 0
    found = run("convert", two_sided.save(tmp_path / "spans", "Bert", "ForQuestionAnswering"), tmp_path / "x")
    assert found.exit_code == 4
    assert "BertForQuestionAnswering: this head cannot be converted" in found.stderr
