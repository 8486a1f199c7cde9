"""Studies: what is refused, and how it is named."""

import pytest

from lineahead.errors import RecipeError
from lineahead.recipes.load import parse
from lineahead.recipes.study.load import load_study, shipped_studies
from lineahead.recipes.study.schema import Study

TEXT_STAGE = {"kind": "distill", "trainable": "full", "kl": 0.0, "ce": 1.0, "steps": 1}
GOOD = {
    "models": {"small": {"architecture": "gpt2"}, "large": {"base": "some/model"}},
    "tasks": {
        "text": {"kind": "perplexity", "data": {"files": ["a"]}, "files": {"held-out": "b"}},
        "labels": {"kind": "accuracy", "train": "a", "test": "b"},
    },
    "grid": [{"model": "small", "task": "text", "stages": [TEXT_STAGE]}],
}


def row(**changes):
    return {**GOOD, "grid": [{**GOOD["grid"][0], **changes}]}


@pytest.mark.parametrize("name", sorted(shipped_studies()))
def test_shipped_studies_are_valid(name):
    study = load_study(name)
    assert study.name == name
    assert study.description
    assert parse(Study, study.model_dump(mode="json"), "again") == study


def test_smoke_and_gpu_are_shipped():
    assert set(shipped_studies()) >= {"smoke", "gpu"}


def test_overrides_reach_the_grid():
    study = load_study("smoke", ["grid.0.seeds=[1, 2]", "tasks.text.context=64"])
    assert study.grid[0].seeds == (1, 2)
    assert study.tasks["text"].context == 64


@pytest.mark.parametrize(
    ("data", "message", "hint"),
    [
        ({**GOOD, "modls": {}}, "unknown key 'modls'", "'models'"),
        ({**GOOD, "models": {"small": {"architectur": "x"}}}, "'models.small.architectur'", "'architecture'"),
        ({**GOOD, "models": {"small": {}}}, "models.small: give either base or architecture", None),
        (row(methds=[]), "unknown key 'grid.0.methds'", "'methods'"),
        (
            row(stages=[{**TEXT_STAGE, "learning": 1}]),
            "unknown key 'grid.0.stages.0.learning'",
            "learning_rate",
        ),
        (row(methods=[{"name": "x", "windo": 1}]), "unknown key 'grid.0.methods.0.windo'", "'window'"),
        (row(stages=[]), "grid.0.stages", None),
        (row(model="smal"), "no model 'smal'; there are: small, large", None),
        (row(task="txt"), "no task 'txt'", None),
        (row(settings={"preset": "augmented"}), "list it under methods", None),
        (row(stages=[{"kind": "classify", "steps": 1}]), "must be of kind transfer or distill", None),
        (row(task="labels"), "must be of kind classify", None),
        (row(methods=["relu"], variants={"x": {}}), "either methods or variants", None),
        (row(model="large", variants={"x": {}}), "is a checkpoint: it has no variants", None),
        (row(stages=[{**TEXT_STAGE, "kl": 1.0}]), "has no teacher", None),
        (row(stages=[{"kind": "transfer", "steps": 1}, TEXT_STAGE]), "has no teacher", None),
        (
            row(model="large", stages=[{"kind": "distill", "steps": 1}, TEXT_STAGE]),
            "only the last stage can train adapters",
            None,
        ),
    ],
)
def test_mistakes_are_named(data, message, hint):
    with pytest.raises(RecipeError) as caught:
        parse(Study, data, "here")
    assert str(caught.value).startswith("here: ")
    assert message in str(caught.value)
    assert hint is None or hint in caught.value.hint
