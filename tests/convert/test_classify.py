"""Classifiers: files, training, resuming, and what the accuracy is compared with."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from lineahead.convert.classify import Options, read_labelled, train_classifier
from lineahead.convert.replace import linearize
from lineahead.convert.training.labelled import PADDING, LabelledBatches
from lineahead.convert.training.progress import Silent
from lineahead.errors import ArchitectureError, InputError, TrainingError
from lineahead.plugins.augmented_attention.schema import AttentionSettings
from lineahead.recipes.schema import ClassifyStage

WORDS = ["<pad>", "good", "bad", "film", "plot", "is", "the"]
STAGE = {
    "epochs": 4,
    "batch_size": 8,
    "sequence_length": 16,
    "learning_rate": 1e-2,
    "base_learning_rate": 1e-2,
}


@pytest.fixture
def tokenizer():
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", unk_token="<pad>")


@pytest.fixture
def files(tmp_path):
    """Texts whose class is their first word; 5 of 8 are good."""
    generator = torch.Generator().manual_seed(0)
    paths = {}
    for name, count in (("train", 80), ("test", 40)):
        lines = ["sentence\tlabel"]
        for i in range(count):
            good = i % 8 < 5
            rest = torch.randint(3, len(WORDS), (int(i % 5) + 1,), generator=generator).tolist()
            words = ["good" if good else "bad", *(WORDS[j] for j in rest)]
            lines.append(" ".join(words) + f" \t{int(good)}")
        paths[name] = tmp_path / f"{name}.tsv"
        paths[name].write_text("\n".join(lines) + "\n", encoding="utf-8")
    return paths


@pytest.fixture
def data(files):
    train = read_labelled(files["train"])
    return train, read_labelled(files["test"], train.names)


def classifier(linear=True):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, num_labels=2,
        initializer_range=0.15,
    )  # fmt: skip
    model = LlamaForSequenceClassification(config)
    if linear:
        linearize(model, AttentionSettings(window=4, conv_taps=3))
    return model


def options(tmp_path, **changes):
    stage = ClassifyStage(**{**STAGE, **changes.pop("stage", {})})
    return Options(folder=tmp_path / "run", stage=stage, device="cpu", progress=Silent(), **changes)


@pytest.mark.parametrize("linear", [False, True], ids=["softmax", "linear"])
def test_it_learns_and_says_what_the_majority_gets(data, tokenizer, tmp_path, one_thread, linear):
    found = train_classifier(classifier(linear), tokenizer, *data, options(tmp_path, stage={"epochs": 8}))
    assert found.majority == pytest.approx(5 / 8)
    assert found.accuracy >= 0.95
    assert found.steps == 80
    assert found.loss_curve[-1][0] == 80
    assert found.loss_curve[-1][1] < 0.5 * found.loss_curve[0][1]
    assert (found.train_examples, found.test_examples, found.classes) == (80, 40, ("0", "1"))


class Killed(BaseException):
    """Not caught by anything, like a kill."""


def test_a_killed_run_goes_on_where_it_was(data, tokenizer, tmp_path, one_thread):
    whole = classifier()
    train_classifier(whole, tokenizer, *data, options(tmp_path / "whole"))

    def kill(step):
        if step == 17:
            raise Killed

    with pytest.raises(Killed):
        train_classifier(
            classifier(), tokenizer, *data, options(tmp_path, on_step=kill, checkpoint_seconds=1e-9)
        )
    with pytest.raises(TrainingError, match="holds a training run"):
        train_classifier(classifier(), tokenizer, *data, options(tmp_path))
    steps = []
    model = classifier()
    found = train_classifier(model, tokenizer, *data, options(tmp_path, resume=True, on_step=steps.append))
    assert steps[0] == 18
    assert [step for step, _ in found.loss_curve] == list(range(1, 41))
    for (name, got), want in zip(model.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(got, want), name


def test_padding_changes_no_score(data, tokenizer):
    from lineahead.convert.classify import class_logits

    source = LabelledBatches.of(data[0], tokenizer, length=16, batch_size=8, epochs=1, seed=0)
    model = classifier().eval()
    batch = source.pack(range(12))
    assert (batch == PADDING).any()
    with torch.no_grad():
        together = class_logits(model, batch)
        alone = torch.cat([class_logits(model, source.pack([i])) for i in range(12)])
    assert (together - alone).abs().max() <= 1e-5


def test_a_pass_sees_every_text_once(data, tokenizer):
    source = LabelledBatches.of(data[0], tokenizer, length=16, batch_size=8, epochs=1, seed=3)
    places = [source._place(i) for i in range(160)]
    assert sorted(places[:80]) == sorted(places[80:]) == list(range(80))
    assert places[:80] != places[80:]
    assert source.steps(None, None, 1, 1) == 10
    assert source.steps(None, 7, 1, 1) == 7


def test_files_without_a_header(tmp_path):
    path = tmp_path / "news.tsv"
    path.write_text("a 'quoted text\tWorld\nmore \"text\tSci/Tech\n", encoding="utf-8")
    data = read_labelled(path)
    assert data.names == ("Sci/Tech", "World")
    assert data.labels == (1, 0)
    assert data.texts == ("a 'quoted text", 'more "text')
    assert data.commonest == 0
    assert len(data.first(1)) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [("no label here\n", ":1: not a text"), ("", "no labelled texts"), ("a\tb\tc\n", ":1:")],
)
def test_bad_files(tmp_path, text, message):
    path = tmp_path / "bad.tsv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_labelled(path)
    with pytest.raises(InputError, match="cannot read"):
        read_labelled(tmp_path / "none.tsv")


def test_an_unknown_label_is_named(files):
    with pytest.raises(InputError, match="'1' is not one of"):
        read_labelled(files["test"], ("0", "2"))


def test_models_and_data_that_do_not_fit(data, tokenizer, tmp_path, tiny_llama):
    with pytest.raises(ArchitectureError, match="LlamaForCausalLM"):
        train_classifier(tiny_llama, tokenizer, *data, options(tmp_path))
    other = type(data[1])(texts=("x",), labels=(0,), names=("2",))
    with pytest.raises(InputError, match="not the test classes"):
        train_classifier(classifier(), tokenizer, data[0], other, options(tmp_path))
