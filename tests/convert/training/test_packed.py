"""Documents in one row: what a row holds, and that a document's logits do not depend on its neighbours."""

import json

import numpy as np
import pytest
import torch

from lineahead.convert.checkpoint import load_model
from lineahead.convert.pipeline import Options, convert_checkpoint, finetune
from lineahead.convert.training.data import Tokens
from lineahead.convert.training.packed import DocumentBatches, batches_of
from lineahead.convert.training.progress import Silent
from lineahead.convert.training.rows import Rows, counted, targets
from lineahead.errors import RecipeError
from lineahead.plugins.augmented_attention.huggingface.attention import softmax_at, teacher
from lineahead.plugins.augmented_attention.huggingface.modeling import layers_of
from lineahead.recipes.schema import Data

END, WINDOW, LENGTH = 1, 8, 32


def stream(*lengths):
    """Documents of these lengths, end-of-text tokens included; every token is another number."""
    ids, number = [], 2
    for length in lengths:
        ids += [*range(number, number + length - 1), END]
        number += length - 1
    return Tokens(ids=np.asarray(ids, np.int32), source="test")


def packed(*lengths, batch_size=1):
    return DocumentBatches(
        tokens=stream(*lengths),
        sequence_length=LENGTH,
        batch_size=batch_size,
        seed=0,
        separator=END,
        multiple=WINDOW,
    )


def test_every_token_is_in_a_row_once_and_texts_begin_at_a_window():
    batches = packed(5, 9, 40, 8, 2, 20)
    rows = [Rows.of(batches.batch(i)) for i in range(batches.sequences)]
    held = torch.cat([row.ids[row.real] for row in rows])
    assert sorted(held.tolist()) == sorted(batches.tokens.ids.tolist())
    for row in rows:
        begins = (row.positions[0] == 0).nonzero()[:, 0]
        assert begins[0] == 0
        assert not (begins % WINDOW).any()
        assert row.real[0, begins].all()
        pairs = torch.stack([row.ids[:, :-1][row.predicted], targets(row)], 1)
        assert (pairs[:, 1] - pairs[:, 0] == 1).logical_or(pairs[:, 1] == END).all()
        assert not (pairs[:, 0] == END).any()
    assert batches.padding == pytest.approx(1 - 84 / (batches.sequences * LENGTH))


def test_a_rest_of_one_token_is_left_out():
    batches = packed(LENGTH + 1, LENGTH)
    assert batches.sequences == 2


@pytest.fixture
def student(artifact):
    """The artifact's model in float64, its operators no longer what they were at first."""
    model = load_model(artifact).double()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lineahead." in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def in_mode(mode, model, rows):
    if mode == "linear":
        return rows.hidden(model)
    with teacher() if mode == "softmax" else softmax_at([0]):
        return rows.hidden(model)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["linear", "softmax", "hybrid"])
def test_a_documents_logits_do_not_depend_on_its_neighbours(student, mode):
    """In the student, the teacher and the student with a softmax layer, whatever stands beside it."""
    assert {layer.settings.window for layer in layers_of(student.config)} == {WINDOW}
    vocabulary = student.config.vocab_size
    lengths, generator = (11, 6, 15), torch.Generator().manual_seed(0)
    texts = [torch.randint(2, vocabulary, (n,), generator=generator) for n in lengths]
    row, first = torch.full((2, 48), -1), []
    place = 0
    for text in texts:
        first.append(place)
        row[0, place : place + len(text)] = text
        row[1, place:] = torch.arange(48 - place)
        place += -(-len(text) // WINDOW) * WINDOW
    found = in_mode(mode, student, Rows.of(row[None]))[0]
    for begin, text in zip(first, texts, strict=True):
        alone = in_mode(mode, student, Rows.of(text[None]))[0]
        torch.testing.assert_close(found[begin : begin + len(text)], alone, rtol=1e-9, atol=1e-9)
    joined = in_mode(mode, student, Rows.of(torch.cat(texts)[None]))[0]
    assert not torch.allclose(joined[11:17], found[first[1] : first[1] + 6], atol=1e-4)


def test_only_tokens_of_the_same_text_are_predicted():
    batches = packed(5, 9, 40)
    rows = next(row for row in (Rows.of(batches.batch(i)) for i in range(2)) if row.ids[0, 0] == 2)
    hidden = torch.arange(LENGTH)[None, :, None].expand(1, -1, 3)
    assert counted(hidden, rows)[:, 0].tolist() == [*range(4), *range(8, 16), *range(24, 31)]
    assert len(targets(rows)) == 4 + 8 + 7


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor:UserWarning"
)  # torch.compile asks every input
def test_both_stages_train_on_documents(source, text, tmp_path, recipe, one_thread, captured):
    """Texts of 20 tokens lie in the window for the most part: there the student is nearer to its teacher."""
    distill = {"kind": "distill", "kl": 0.5, "ce": 0.5, "learning_rate": 3e-3, "base_learning_rate": 3e-3}
    stages = {"kind": "transfer", "steps": 2}, {**distill, "steps": 4}
    words, lines = text.read_text(), tmp_path / "lines.jsonl"
    lines.write_text("".join(json.dumps({"text": words[i : i + 19]}) + "\n" for i in range(0, 5000, 19)))
    losses = {}
    for packing, compiled in (("joined", False), ("documents", False), ("documents", True)):
        folder = tmp_path / f"{packing}-{compiled}"
        chosen = recipe(*stages, data={"files": [str(lines)], "packing": packing}, compile=compiled)
        convert_checkpoint(source, folder, chosen)
        manifest = finetune(folder, chosen, Options(device="cpu", progress=Silent()))
        losses[packing, compiled] = [one.losses["loss"] for one in manifest.training]
    joined, documents = losses["joined", False], losses["documents", False]
    assert 0 < documents[0] < 0.5 * joined[0]
    assert documents[1] == pytest.approx(joined[1], rel=0.5)
    assert losses["documents", True] == pytest.approx(documents, rel=1e-4)


def test_what_cannot_be_told_apart_is_refused(artifact, recipe):
    layers = layers_of(load_model(artifact).config)
    stage = recipe({"kind": "transfer", "steps": 1}).stages[0]

    def make(separator, length=LENGTH):
        changed = stage.model_copy(update={"sequence_length": length})
        data = Data(files=("x",), packing="documents")
        return batches_of(data, stream(40, 40), changed, seed=0, layers=layers, separator=separator)

    assert isinstance(make(END), DocumentBatches)
    for arguments, words in (
        ((None,), "no end-of-text token"),
        ((END, LENGTH + 4), "no multiple of the window"),
    ):
        with pytest.raises(RecipeError, match=words):
            make(*arguments)
    with pytest.raises(RecipeError, match="packing must be joined"):
        recipe(data={"samples": {}, "packing": "documents"})
