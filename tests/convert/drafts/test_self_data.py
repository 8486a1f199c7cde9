"""Text that the model writes itself."""

import numpy as np
import pytest
import torch

from lineahead.convert.checkpoint import load_artifact
from lineahead.convert.drafts.self_data import sample_tokens
from lineahead.convert.training.progress import Silent
from lineahead.plugins.augmented_attention.huggingface.attention import teacher
from lineahead.recipes.schema import Samples


def sample(model, tokenizer, folder, softmax=False, seed=0, **changes):
    samples = Samples(
        **{"tokens": 128, "sequence_length": 24, "batch_size": 3, "temperature": 1e-4, **changes}
    )
    return sample_tokens(
        model, tokenizer, samples, seed=seed, folder=folder, progress=Silent(), softmax=softmax
    )


@pytest.mark.parametrize("softmax", [False, True])
def test_cold_samples_are_the_greedy_text_of_the_mode(artifact, tmp_path, softmax):
    model, tokenizer = load_artifact(artifact)
    rows = torch.from_numpy(sample(model, tokenizer, tmp_path / "s", softmax).ids).view(-1, 24).long()
    assert len(rows) == 6
    text = rows[:1]
    with torch.no_grad():
        if softmax:
            with teacher():
                logits = model(input_ids=text, use_cache=False).logits
        else:
            logits = model(input_ids=text, use_cache=False).logits
    assert torch.equal(logits[0, :-1].argmax(-1), text[0, 1:])


def test_samples_are_a_function_of_the_seed_and_survive_a_kill(artifact, tmp_path):
    model, tokenizer = load_artifact(artifact)
    one = sample(model, tokenizer, tmp_path / "a", temperature=1.0)
    (tmp_path / "a" / "00001.npy").unlink()
    again = sample(model, tokenizer, tmp_path / "a", temperature=1.0)
    other = sample(model, tokenizer, tmp_path / "b", temperature=1.0, seed=1)
    assert np.array_equal(one.ids, again.ids)
    assert one.digest != other.digest


def test_prompts_begin_the_samples(artifact, tmp_path):
    model, tokenizer = load_artifact(artifact)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("abc\nthe long one\n", encoding="utf-8")
    rows = sample(model, tokenizer, tmp_path / "s", prompts=[str(prompts)]).ids.reshape(-1, 24)
    starts = {tokenizer.decode(row[:3].tolist()).replace(" ", "")[:3] for row in rows}
    assert starts <= {"abc", "the"}
    long = next(row for row in rows if tokenizer.convert_ids_to_tokens(int(row[0])) == "t")
    assert "".join(tokenizer.convert_ids_to_tokens(long[:12].tolist())) == "the long one"
