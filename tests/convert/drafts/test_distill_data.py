"""A checkpoint's own text as a file: what it says, that a killed run goes on, what is refused."""

import gzip
import json

import pytest
import torch

from lineahead.convert.drafts import self_data
from lineahead.convert.drafts.distill_data import write_samples
from lineahead.convert.pipeline import Options, convert_checkpoint, finetune
from lineahead.convert.source import load_source
from lineahead.convert.training.progress import Silent
from lineahead.errors import InputError, TrainingError
from lineahead.recipes.schema import Samples


class Killed(BaseException):
    """Not caught by anything, like a kill."""


def write(source, output, seed=0, **changes):
    samples = Samples(**{"tokens": 100, "sequence_length": 20, "batch_size": 2, **changes})
    return write_samples(
        str(source), output, samples, seed=seed, precision="fp32", device="cpu", progress=Silent()
    )


def texts(file):
    data = file.read_bytes()
    lines = (gzip.decompress(data) if file.suffix == ".gz" else data).decode().splitlines()
    return [json.loads(line)["text"] for line in lines]


def test_a_cold_text_is_the_greedy_one(source, tmp_path, one_thread):
    found = write(source, tmp_path / "out.jsonl", temperature=1e-4)
    assert (found.texts, found.tokens) == (6, 120)
    loaded = load_source(source)
    ids = torch.tensor([[loaded.tokenizer.bos_token_id]])
    while ids.shape[1] < 20:
        ids = torch.cat([ids, loaded.model(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
    assert texts(found.file) == [loaded.tokenizer.decode(ids[0])] * 6


def test_a_killed_run_goes_on_and_ends_the_same(source, tmp_path, monkeypatch, one_thread):
    whole = write(source, tmp_path / "whole.jsonl.gz").file
    sample, calls = self_data._sample, []

    def kill(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise Killed
        return sample(*arguments)

    monkeypatch.setattr(self_data, "_sample", kill)
    output = tmp_path / "killed.jsonl.gz"
    with pytest.raises(Killed):
        write(source, output)
    assert not output.exists()
    with pytest.raises(TrainingError, match=r"killed\.jsonl\.gz\.samples: unfinished samples of other"):
        write(source, output, seed=1)
    write(source, output)
    assert len(calls) == 4
    assert output.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*.samples"))


def test_a_recipe_trains_on_it(source, tmp_path, recipe, one_thread):
    file = write(source, tmp_path / "out.jsonl.gz").file
    chosen = recipe({"kind": "transfer", "steps": 1}, data={"files": [str(file)]})
    convert_checkpoint(source, tmp_path / "artifact", chosen)
    manifest = finetune(tmp_path / "artifact", chosen, Options(device="cpu", progress=Silent()))
    assert manifest.training[0].data == "out.jsonl.gz"


def test_what_cannot_be_written_is_refused(source, tmp_path):
    with pytest.raises(InputError, match=r"not a \.jsonl"):
        write(source, tmp_path / "out.txt")
    with pytest.raises(InputError, match="longer than the position table"):
        write(source, tmp_path / "out.jsonl", sequence_length=100_000)
