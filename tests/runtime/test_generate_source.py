"""Text of T5 and BART artifacts: the prompt is the encoder's; speculation changes nothing."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lineahead.convert.checkpoint import load_model
from lineahead.convert.pipeline import convert_checkpoint
from lineahead.errors import ArtifactError, InputError
from lineahead.recipes.schema import Recipe
from lineahead.runtime.artifact import read_artifact
from lineahead.runtime.drafters import LookupDrafter
from lineahead.runtime.generate import Generator
from lineahead.runtime.sampling import SamplingParams
from lineahead.runtime.verify import _Run, verify

_file = Path(__file__).parents[1] / "convert" / "two_sided.py"
_spec = importlib.util.spec_from_file_location("two_sided", _file)
two_sided = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(two_sided)

PROMPTS = ["the cat sat on the mat.", "a dog", "hello world, hello world"]
TOKENS = 40
SMALL = Recipe(method={"preset": "augmented", "window": 8, "conv_taps": 4})


@pytest.fixture(scope="module", params=["T5", "Bart"])
def artifact(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    source = two_sided.save(folder / "softmax", request.param, "ForConditionalGeneration")
    convert_checkpoint(source, folder / "artifact", SMALL)
    return folder / "artifact"


@pytest.fixture(scope="module")
def generator(artifact):
    return Generator.load(artifact, backend="eager")


def test_text_is_that_of_transformers(artifact, generator):
    params = SamplingParams(max_tokens=TOKENS, ignore_eos=True)
    plain = generator.generate(PROMPTS, params)
    lookup = generator.generate(PROMPTS, params, drafter=LookupDrafter())
    assert [one.tokens for one in plain] == [one.tokens for one in lookup]
    assert generator.statistics.accepted > 0
    model = load_model(artifact)
    for prompt, one in zip(PROMPTS, plain, strict=True):
        ids = torch.tensor([generator.encode(prompt)])
        assert one.prompt_tokens == ids.shape[1]
        wanted = model.generate(ids, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)
        assert list(one.tokens) == wanted[0, 1:].tolist()
        assert one.text == generator.tokenizer.decode(one.tokens)


def test_verify(generator):
    report = verify(generator, PROMPTS, tokens=TOKENS)
    assert report.identical
    assert {check.drafter for check in report.checks} == {"chain", "tree", "lookup", "tree, batched"}
    assert all(check.accepted for check in report.checks)


def test_a_difference_is_judged_beside_its_source(generator):
    """The logits after the common text are the text's own, so a forged token stands far off."""
    params = SamplingParams(max_tokens=9, ignore_eos=True)
    encoded = [generator.encode(PROMPTS[0])]
    plain = generator.generate(encoded, params)[0].tokens
    run = _Run(generator, encoded, params, lambda *_: None)
    found = run._explain(0, 8, plain, [*plain[:8], (plain[8] + 1) % generator.artifact.vocab_size])
    assert found.margin > 0
    assert found.noise < 1e-3
    assert not found.near_tie


def test_a_forced_first_token_and_a_start_that_is_missing(artifact, generator, tmp_path):
    path = artifact / "generation_config.json"
    saved = path.read_text()
    try:
        path.write_text(json.dumps({**json.loads(saved), "forced_bos_token_id": 5}))
        assert read_artifact(artifact).start == (0, 5)
        path.write_text(json.dumps({**json.loads(saved), "decoder_start_token_id": "x"}))
        with pytest.raises(ArtifactError, match="decoder_start_token_id"):
            read_artifact(artifact)
    finally:
        path.write_text(saved)
    forced = Generator(
        replace(generator.artifact, start=(0, 5)), generator.session, generator.tokenizer
    ).rows(PROMPTS[:1], SamplingParams())
    assert (forced[0].tokens, forced[0].prompt) == ([0, 5], 2)


def test_sources_that_are_too_long(generator):
    """BART's position table ends; T5's relative positions do not."""
    long, limit = [5] * 600, generator.artifact.position_limit
    assert limit in (None, 128)
    if limit is None:
        assert generator.rows([long], SamplingParams())[0].source == long
    else:
        with pytest.raises(InputError, match="has 600 tokens, the model's positions end at 128"):
            generator.rows([long], SamplingParams())
