"""Texts of two backends: equal ones say so, different ones with the token, its margin and its rank."""

import json
import sys

import numpy as np
import pytest

from lineahead.runtime.bench import texts_process
from lineahead.runtime.generate import Generator
from lineahead.runtime.sampling import SamplingParams
from lineahead.runtime.verify import read

PROMPTS = ([5, 6, 7], [9, 8])


@pytest.fixture(scope="module")
def pair(artifact):
    return [Generator.load(artifact, threads=1, implementation="function") for _ in range(2)]


def test_the_same_model_writes_the_same_text(artifact, tmp_path, capsys, monkeypatch):
    load = {"threads": 1, "implementation": "function"}
    request = {"prompts": PROMPTS, "tokens": 12, "reference": load, "judged": load}
    (tmp_path / "request.json").write_text(json.dumps(request))
    monkeypatch.setattr(sys, "argv", ["", str(artifact), str(tmp_path / "request.json")])
    assert texts_process.main() == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["prompts"], said["tokens"], said["differences"]) == (2, 12, [])
    assert said["judged"]["backend"] == "onnxruntime"
    left, right = said["decoding"]["reference"], said["decoding"]["judged"]
    assert left["tokens"] == left["steps"] == right["tokens"]
    assert 11 * 2 >= left["tokens"] > 0
    assert (left["drafter"], left["proposed"]) == ("none", 0)
    assert left["seconds"] > 0


def test_a_changed_token_is_found_with_its_margin_and_rank(pair, monkeypatch):
    reference, judged = pair
    right, first = judged.generate, reference.encode(PROMPTS[1])

    def generate(prompts, params):
        found = right(prompts, params)[0]
        if list(prompts[0]) != first:
            return [found]
        logits = read(judged.session, [*first, *found.tokens[:4]], 1)
        third = int(np.argsort(-logits)[2])
        return [type(found)(**{**vars(found), "tokens": (*found.tokens[:4], third, *found.tokens[5:])})]

    monkeypatch.setattr(judged, "generate", generate)
    (found,) = texts_process.differences(reference, judged, PROMPTS, 8)
    assert (found.prompt, found.position, found.rank) == (1, 4, 2)
    assert found.reference != found.judged
    plain = reference.generate([first], SamplingParams(max_tokens=8))[0].tokens
    logits = read(reference.session, [*first, *plain[:4]], 1)
    assert found.margin == pytest.approx(float(logits.max() - np.sort(logits)[-3]), rel=1e-4)
