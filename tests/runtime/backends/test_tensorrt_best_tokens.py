"""Samples of the best tokens, chosen on the device, on fakes: the text is that of all logits."""

import numpy as np
import pytest

from lineahead.errors import BackendError
from lineahead.runtime.backends.tensorrt import TensorRTSession
from lineahead.runtime.backends.trt_steps import DeviceOutput, Step
from lineahead.runtime.generate import Generator, open_drafter
from lineahead.runtime.sampling import SamplingParams
from lineahead.runtime.session import StepInput

PROMPTS = ("abcabcabcabc", "hello hello hello", "x")
VOCABULARY = 300


def decode(generator, prompts, params, drafter=None):
    return [one.tokens for one in generator.generate(prompts, params, drafter=drafter)]


@pytest.mark.parametrize("drafter", [None, "recurrent"])
def test_samples_of_the_best_tokens_need_no_logits(drafting, generator, monkeypatch, drafter):
    params = SamplingParams(temperature=1.0, top_k=20, max_tokens=16, ignore_eos=True, seed=3)
    wanted = decode(Generator.load(drafting), PROMPTS, params)
    session, asked, steps, step = generator.session, [], [], TensorRTSession._run
    monkeypatch.setattr(DeviceOutput, "scores", lambda *place: asked.append(place))
    monkeypatch.setattr(TensorRTSession, "_run", lambda *given: steps.append(given) or step(*given))
    session._choice.tops = 0
    own = open_drafter(generator.artifact, drafter, nodes=3, session=session) if drafter else None
    assert decode(generator, PROMPTS, params, own) == wanted
    assert not asked
    assert session._choice.tops
    assert len(steps) > 4


@pytest.mark.parametrize("params", [{"top_k": 0}, {"top_k": 65}, {"top_k": 5, "min_tokens": 4}])
def test_samples_of_more_than_the_best_tokens_read_logits(drafting, generator, monkeypatch, params):
    wanted = SamplingParams(temperature=1.0, max_tokens=12, seed=5, **params)
    expected = decode(Generator.load(drafting), PROMPTS, wanted)
    asked, scores = [], DeviceOutput.scores
    monkeypatch.setattr(DeviceOutput, "scores", lambda *place: asked.append(place) or scores(*place))
    assert decode(generator, PROMPTS, wanted) == expected
    assert asked


def test_the_best_tokens_are_chosen_in_the_graph_once_they_were_asked_for(generator, monkeypatch):
    session, in_graph, run = generator.session, [], Step.run
    monkeypatch.setattr(Step, "run", lambda self, call: in_graph.append(self._top) or run(self, call))
    session.reset(1)

    def step():
        accepted = int(session._nodes > 0)
        inputs = StepInput(
            input_ids=np.array([[5]]),
            ancestors=np.ones((1, 1, 1), np.bool_),
            output_index=np.zeros((1, 1), np.int64),
            accept_index=np.zeros((1, accepted), np.int64),
            accept_count=np.array([accepted]),
        )
        return session.step(inputs)

    for count, chosen in ((0, False), (7, False), (64, True), (1, True), (0, True), (0, False)):
        output = step()
        assert in_graph[-1] == chosen
        if count:
            tokens, scores, width = output.best(0, 0, count)
            order = np.argsort(-output.scores(0, 0), kind="stable")[:count]
            assert width == VOCABULARY
            np.testing.assert_array_equal(tokens, order)
            np.testing.assert_array_equal(scores, output.scores(0, 0)[order])
    assert output.best(0, 0, 65) is None
    step()
    with pytest.raises(BackendError, match="asked for after the next step"):
        output.best(0, 0, 3)
