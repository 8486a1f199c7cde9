import shutil
import subprocess
import sys

import pytest

from lineahead.errors import ArtifactError, BackendError, InputError
from lineahead.runtime.artifact import read_artifact
from lineahead.runtime.generate import Generator, open_drafter, open_session
from lineahead.runtime.sampling import SamplingParams
from lineahead.runtime.verify import verify

PROMPTS = ["Hello", "a", "The quick brown fox jumps over the lazy dog, again and again."]


@pytest.fixture(scope="module")
def generator(artifact):
    return Generator.load(artifact, implementation="function", threads=1)


def test_prompts_in_text_out(generator):
    params = SamplingParams(max_tokens=30, ignore_eos=True)
    together = generator.generate(PROMPTS, params)
    for prompt, one in zip(PROMPTS, together, strict=True):
        (alone,) = generator.generate([prompt], params)
        assert alone == one
        assert len(one.tokens) == 30
        assert one.text == generator.tokenizer.decode(one.tokens)
        assert one.finish == "length"
    assert [one.tokens for one in together] == [
        one.tokens for one in generator.generate([generator.encode(prompt) for prompt in PROMPTS], params)
    ]


def test_streams_add_up_to_the_result(generator):
    params = SamplingParams(max_tokens=25, temperature=1.0, seed=2)
    whole = generator.generate(PROMPTS, params, drafter=open_drafter(generator.artifact, "lookup"))
    text, ended = [""] * 3, []
    for event in generator.stream(PROMPTS, params):
        text[event.request] += event.text
        ended += [event.request] * (event.finish is not None)
    assert text == [one.text for one in whole]
    assert sorted(ended) == [0, 1, 2]


def test_shared_parameters_give_each_prompt_its_own_stream(generator):
    params = SamplingParams(max_tokens=20, temperature=2.0)
    one, two = generator.generate(["Hello", "Hello"], params)
    assert one != two
    again = generator.generate(["x", "Hello"], [params, params])[1]
    assert again.tokens == one.tokens


def test_verify_finds_no_difference(generator):
    report = verify(generator, PROMPTS, tokens=60, batch=2)
    assert report.identical
    assert report.defects == report.near_ties == 0
    assert [check.drafter for check in report.checks] == ["chain", "tree", "lookup", "tree, batched"]
    for check in report.checks:
        assert check.tokens == 180
        if check.drafter != "lookup":
            assert check.accepted > 60


def test_verify_of_a_model_with_softmax_layers(hybrid_artifact):
    hybrid = Generator.load(hybrid_artifact, threads=1)
    report = verify(hybrid, [[0, 5, 6, 7, 5, 6, 7, 5, 6], list(range(2, 60))], tokens=40, batch=2)
    assert report.identical
    assert sum(check.accepted for check in report.checks) > 20


def test_verify_with_more_drafters_and_another_programs_text(generator):
    params = SamplingParams(max_tokens=20, ignore_eos=True)

    def written(prompts, tokens):
        assert tokens == 20
        return [list(one.tokens) for one in generator.generate(prompts, params)]

    def mistaken(prompts, tokens):
        texts = written(prompts, tokens)
        texts[1][7] = (texts[1][7] + 1) % 300
        return [*texts[:2], texts[2][:-1]]

    also = {"second": open_drafter(generator.artifact, "lookup", nodes=2)}
    report = verify(generator, PROMPTS, tokens=20, batch=1, also=also, original=written)
    assert report.identical
    assert [check.drafter for check in report.checks[-2:]] == ["second", "original"]
    assert report.checks[-1].accepted == 0
    (*_, judged) = verify(generator, PROMPTS, tokens=20, batch=1, original=mistaken).checks
    assert [(one.prompt, one.position) for one in judged.divergences] == [(1, 7), (2, 19)]
    assert not any(one.near_tie for one in judged.divergences)
    with pytest.raises(InputError, match="sampled text"):
        verify(generator, PROMPTS, params=SamplingParams(temperature=1.0), original=written)


def test_a_draft_model_must_number_tokens_alike(artifact, tmp_path):
    other = shutil.copytree(artifact, tmp_path / "other")
    text = (other / "tokenizer.json").read_text()
    assert '"a":' in text
    (other / "tokenizer.json").write_text(
        text.replace('"a":', '"swap":').replace('"b":', '"a":').replace('"swap":', '"b":')
    )
    with pytest.raises(InputError, match="number their tokens differently"):
        open_drafter(read_artifact(artifact), "model", model=other, precision="fp32")


def test_verify_tells_a_defect(generator, monkeypatch):
    from lineahead.runtime.layout import Part

    monkeypatch.setattr(Part, "accept", lambda part, path: [*range(len(part.chain) + len(path))])
    report = verify(generator, PROMPTS, tokens=60, batch=1)
    assert not report.identical
    tree = report.checks[1]
    assert tree.drafter == "tree"
    assert tree.divergences
    assert report.defects > 0
    assert report.as_dict()["checks"][1]["divergences"][0]["margin"] > 0


def test_bad_prompts(generator):
    for prompt, message in (([], "no tokens"), ([300], "outside the vocabulary"), ([-1], "outside")):
        with pytest.raises(InputError, match=message):
            generator.generate([prompt])
    with pytest.raises(InputError, match="end at 160"):
        generator.generate([[5] * 160])
    with pytest.raises(InputError, match="2 prompts, 1 parameters"):
        generator.generate(["a", "b"], [SamplingParams()])
    with pytest.raises(InputError):
        verify(generator, [])


def test_the_position_limit_and_its_lifting(generator):
    params = SamplingParams(max_tokens=50, ignore_eos=True)
    (short,) = generator.generate([[5] * 150], params)
    assert (len(short.tokens), short.finish) == (10, "context")
    (long,) = generator.generate([[5] * 150], params, ignore_position_limit=True)
    assert (len(long.tokens), long.finish) == (50, "length")
    assert long.tokens[:10] == short.tokens


def test_missing_parts_are_named(artifact, tmp_path):
    with pytest.raises(ArtifactError, match=r"no config\.json"):
        Generator.load(tmp_path)
    found = read_artifact(artifact)
    with pytest.raises(ArtifactError, match=r"verifier_int4\.onnx") as error:
        open_session(found, precision="int4")
    assert "--precision fp32" in error.value.hint
    with pytest.raises(ArtifactError, match=r"draft\.onnx"):
        open_drafter(found, "medusa")
    with pytest.raises(InputError, match="oracle"):
        open_drafter(found, "oracle")
    with pytest.raises(BackendError, match="abacus"):
        open_session(found, backend="abacus")


PROGRAM = """
import sys
for name in ("torch", "transformers", "onnx", "onnxscript", "peft", "accelerate"):
    sys.modules[name] = None
from lineahead.errors import BackendError
from lineahead.runtime.generate import Generator
from lineahead.runtime.sampling import SamplingParams
generator = Generator.load(sys.argv[1], implementation="function", threads=1, drafter="lookup")
print(generator.generate(["Hello"], SamplingParams(max_tokens=12, ignore_eos=True))[0].tokens)
try:
    Generator.load(sys.argv[1], backend="eager")
except BackendError as error:
    print(error, error.hint)
"""


def test_it_runs_where_torch_cannot_be_imported(artifact, generator):
    (expected,) = generator.generate(["Hello"], SamplingParams(max_tokens=12, ignore_eos=True))
    command = [sys.executable, "-c", PROGRAM, str(artifact)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.strip().splitlines()
    assert first == str(expected.tokens)
    assert second.startswith("the eager backend needs torch Install")
