"""The certificate passes on a sound artifact and fails on each seeded bug."""

import contextlib
import json
from dataclasses import replace

import numpy as np
import pytest

from lineahead.errors import ArtifactError, InputError
from lineahead.runtime import acceptance
from lineahead.runtime.certificate import drawn
from lineahead.runtime.certificate.document import certify, stale_files, write_certificate
from lineahead.runtime.certificate.goodness import g_test
from lineahead.runtime.certificate.samples import check_samples
from lineahead.runtime.certificate.states import check_state
from lineahead.runtime.generate import Generator
from lineahead.runtime.sampling import SamplingParams
from lineahead.runtime.session import StepOutput
from lineahead.runtime.verify import verify

PROMPTS = [[0, 5, 6, 7, 5, 6], list(range(2, 40))]


def quiet(name, done, total):
    """No progress."""


@pytest.fixture(scope="module")
def generator(artifact):
    return Generator.load(artifact)


def make(artifact, **options):
    """A small certificate of the artifact."""
    sizes = {"tokens": 60, "samples": 1200, **options}
    return certify(lambda precision: Generator.load(artifact), lambda loaded: PROMPTS, **sizes)


def continued(generator, tokens=90):
    """A prompt and the text that plain decoding makes of it."""
    params = SamplingParams(max_tokens=tokens, ignore_eos=True)
    return PROMPTS[0], [*PROMPTS[0], *generator.generate([PROMPTS[0]], params)[0].tokens]


def test_a_sound_artifact_passes_and_says_what_was_checked(artifact):
    made = make(artifact, reduced=["int4"])
    assert made.passed
    assert made.identical
    assert made.prompts == 2
    assert "tree" in made.drafters
    assert made.state.rejected > 10
    assert list(made.reduced) == ["int4"]
    for one in made.samples:
        assert 0.05 < one.acceptance < 0.95
        assert one.test.detectable < 0.3
        assert one.test.bins > 10
    assert "model.safetensors" in made.hashes
    assert "onnx/verifier.onnx" in made.hashes


def test_the_file_names_what_changed_since(artifact, tmp_path):
    made = make(artifact, tokens=24, samples=200)
    for path in artifact.rglob("*"):
        if path.is_file():
            copy = tmp_path / path.relative_to(artifact)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(path.read_bytes())
    write_certificate(made, tmp_path / "certificate.json")
    assert stale_files(tmp_path) == []
    assert json.loads((tmp_path / "certificate.json").read_text())["passed"] is True
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    assert stale_files(tmp_path) == ["config.json"]
    (tmp_path / "certificate.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"certificate.json"):
        stale_files(tmp_path)


def test_no_prompts_are_refused(artifact):
    with pytest.raises(InputError, match="no prompts"):
        certify(lambda precision: Generator.load(artifact), lambda loaded: [])


class Faulty:
    """A session with a bug: `before` changes a call's inputs, `after` its outputs."""

    def __init__(self, session, before=lambda inputs, pending: inputs, after=lambda output: output):
        self._session, self._before, self._after, self._pending = session, before, after, 0

    def __getattr__(self, name):
        return getattr(self._session, name)

    def reset(self, batch):
        self._pending = 0
        self._session.reset(batch)

    def write_state(self, tensors):
        self._pending = 0
        self._session.write_state(tensors)

    def flush(self, accept_index, accept_count):
        self._session.flush(accept_index, accept_count)
        self._pending = 1

    def step(self, inputs):
        output = self._after(self._session.step(self._before(inputs, self._pending)))
        self._pending = inputs.input_ids.shape[1]
        return output


def one_too_many(inputs, pending):
    """Commit a rejected row along with the accepted ones."""
    count = inputs.accept_count
    if count.max(initial=0) >= pending:
        return inputs
    extra = np.where(count < pending, count, pending - 1)[:, None]
    index = np.concatenate([inputs.accept_index, np.zeros_like(extra)], 1)
    index[np.arange(len(count)), count] = extra[:, 0]
    return replace(inputs, accept_index=index, accept_count=count + 1)


def wrong_row(output):
    """Every result but the first comes from the row before."""
    logits = output.logits.copy()
    logits[:, 1:] = output.logits[:, :-1]
    return StepOutput(logits=logits, hidden=output.hidden)


@contextlib.contextmanager
def faulty(generator, **bugs):
    sound = generator.session
    generator.session = Faulty(sound, **bugs)
    try:
        yield generator
    finally:
        generator.session = sound


def test_stale_state_after_a_rejection_is_caught(generator):
    prompt, text = continued(generator)
    assert check_state(generator, prompt, text, seed=0).agrees
    with faulty(generator, before=one_too_many) as broken:
        assert not verify(broken, PROMPTS, tokens=60, batch=1).identical
    with faulty(generator, before=one_too_many) as broken:
        found = check_state(broken, prompt, text, seed=0)
    assert not found.agrees
    assert found.difference > 1e-3


def test_a_bonus_token_from_the_wrong_row_is_caught(generator):
    with faulty(generator, after=wrong_row) as broken:
        report = verify(broken, PROMPTS, tokens=60, batch=1)
    assert not report.identical
    assert report.defects


def test_a_forgotten_group_boundary_is_caught(artifact, monkeypatch):
    """Drafted tokens take keys of an earlier group for their own group's: right token by token only."""
    from lineahead.plugins.augmented_attention import step as operator

    sound = operator.is_local

    def everything_local_while_drafting(settings, query, key):
        near = sound(settings, query, key)
        return near | True if query.shape[1] > 1 else near

    monkeypatch.setattr(operator, "is_local", everything_local_while_drafting)
    report = verify(Generator.load(artifact, backend="eager"), PROMPTS, tokens=30, batch=1)
    assert not report.identical
    assert report.defects


def test_an_untruncated_draft_distribution_is_caught(generator, monkeypatch):
    prompt = continued(generator, 8)[1]
    assert all(one.agrees for one in check_samples(generator, prompt, samples=3000, seed=0, progress=quiet))
    sound = drawn.DrawnDrafter._propose

    def untruncated(self, row):
        tree = sound(self, row)
        params = replace(row.params, top_k=0)
        depths = tree.depths
        draws = {n: drawn.distribution(self._logits[depths[n]] * 0.3, params) for n in tree.draws}
        return replace(tree, draws=draws)

    monkeypatch.setattr(drawn.DrawnDrafter, "_propose", untruncated)
    assert not all(
        one.agrees for one in check_samples(generator, prompt, samples=3000, seed=0, progress=quiet)
    )


def test_accepting_without_the_ratio_is_caught(generator, monkeypatch):
    """Every drawn token that the target could emit is accepted."""
    prompt = continued(generator, 8)[1]

    def any_possible(tree, node, target, random):
        child = next((one for one in tree.children(node) if target[tree.tokens[one]] > 0), None)
        return child, target

    monkeypatch.setattr(acceptance, "_try_drawn", any_possible)
    assert not all(
        one.agrees for one in check_samples(generator, prompt, samples=1200, seed=0, progress=quiet)
    )


def test_g_test_has_the_level_and_the_power_that_it_states():
    random, expected = np.random.default_rng(0), np.array([0.4, 0.3, 0.2, 0.1])
    level, samples = 0.05, 400
    sound = [g_test(random.multinomial(samples, expected), expected, level=level) for _ in range(400)]
    assert 0.02 < np.mean([not one.agrees for one in sound]) < 0.09
    effect = sound[0].detectable
    shift = np.array([1.0, -1.0, 1.0, -1.0])
    shift *= effect / np.sqrt((shift**2 / expected).sum())
    other = expected + shift
    found = [g_test(random.multinomial(samples, other), expected, level=level) for _ in range(400)]
    assert 0.85 < np.mean([not one.agrees for one in found]) < 0.95


def test_g_test_pools_rare_outcomes_and_counts_impossible_ones():
    expected = np.array([0.6, 0.39, 0.005, 0.005, 0.0])
    found = g_test(np.array([60, 38, 1, 0, 1]), expected, level=0.01)
    assert found.bins == 3
    assert found.impossible == 1
    assert not found.agrees
