"""Probes against models that keep the same layers for real; the command from end to end."""

import copy
import json

import pytest
import torch

from lineahead.convert.planner.plan import plan_layers
from lineahead.convert.planner.probe import Probe
from lineahead.convert.replace import linearize
from lineahead.errors import InputError
from lineahead.plugins.augmented_attention.methods import PRESETS


@pytest.mark.parametrize("kept", [(), (0,), (1,), (0, 1)])
def test_a_probe_is_what_a_model_that_keeps_the_layers_gives(tiny_llama, kept):
    ids = torch.arange(3 * 40) * 7 % 97
    with torch.no_grad():
        originals = {name: value.clone() for name, value in tiny_llama.state_dict().items()}
    other = copy.deepcopy(tiny_llama)
    linearize(tiny_llama, PRESETS["softmax-hedgehog"])
    found = Probe(tiny_llama, ids, context=40, batch=2).nats(kept)
    if len(kept) < 2:
        linearize(other, PRESETS["softmax-hedgehog"], keep=kept)
    rows = ids.reshape(3, 40)
    with torch.no_grad():
        logits = other(input_ids=rows, use_cache=False).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
    assert found == pytest.approx(float(expected), abs=2e-5)
    for name, value in originals.items():
        assert torch.equal(tiny_llama.state_dict()[name], value)


def test_plan_of_an_artifact(artifact, text):
    plan = plan_layers(artifact, [text], keep=1, context=64, tokens=256, score=4)
    assert len(plan.softmax) == 1
    assert plan.tokens == 4 * 63
    assert sum(plan.shares.values()) == pytest.approx(1.0)
    assert len(plan.scored) == 4
    assert plan.worst_error is not None
    assert plan.flag == f"--keep-softmax {plan.softmax[0]}"


def test_a_plan_wants_one_kind_of_budget(artifact, text):
    with pytest.raises(InputError, match="either a number of layers or a limit"):
        plan_layers(artifact, [text], context=64, tokens=256)
    with pytest.raises(InputError, match="tokens of text are fewer than 100000"):
        plan_layers(artifact, [text], keep=1, context=100000, tokens=100000)


def test_the_command_prints_a_flag_that_convert_takes(artifact, text, source, run, tmp_path):
    written = tmp_path / "plan.json"
    result = run(
        "plan",
        artifact,
        text,
        "--state-mb",
        "1",
        "--context",
        "64",
        "--tokens",
        "128",
        "-o",
        written,
        "--json",
    )
    found = json.loads(result.stdout)
    assert found["convert"].startswith("--keep-softmax ")
    assert json.loads(written.read_text())["state_bytes"] <= 1e6
