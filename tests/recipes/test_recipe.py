"""Recipes: what is refused, how, and that it is refused without torch."""

import dataclasses
import subprocess
import sys

import pytest

from lineahead.errors import RecipeError
from lineahead.recipes.load import load_recipe, parse_recipe, shipped_recipes
from lineahead.recipes.schema import Method

GOOD = {
    "data": {"files": ["a.txt"]},
    "stages": [
        {"kind": "transfer", "tokens": 100},
        {"kind": "distill", "steps": 3, "lora": {"r": 4}},
    ],
}


def changed(**top):
    return {**GOOD, **top}


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_shipped_recipes_are_valid(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert parse_recipe(recipe.model_dump(mode="json"), "again") == recipe
    assert recipe.description


def test_shipped_names_are_those_promised():
    assert set(shipped_recipes()) >= {"demo", "smoke", "augmented", "gpu"}


def test_method_has_exactly_the_operators_settings():
    from lineahead.plugins.augmented_attention.schema import AttentionSettings

    settings = {field.name for field in dataclasses.fields(AttentionSettings)}
    assert set(Method.model_fields) - {"preset"} == settings - {"causal"}  # which follows from the model
    assert Method(window=8, qk_norm=False).changes() == {"window": 8, "qk_norm": False}


@pytest.mark.parametrize(
    ("data", "message", "hint"),
    [
        (changed(stagse=[]), "unknown key 'stagse'", "'stages'"),
        (changed(method={"presett": "x"}), "unknown key 'method.presett'", "'preset'"),
        (changed(draft={"samples": {"token": 1}}), "'draft.samples.token'", "'tokens'"),
        (changed(stages=[{"kind": "transfer", "tokens": 1, "lr": 1}]), "'stages.0.lr'", "learning_rate"),
        (
            changed(stages=[{"kind": "distill", "steps": 1, "lora": {"rank": 1}}]),
            "'stages.0.lora.rank'",
            "Known keys here: r,",
        ),
        (changed(stages=[{"kind": "transfr", "steps": 1}]), "stages.0", None),
        (changed(stages=[{"kind": "transfer"}]), "either tokens or steps", None),
        (changed(stages=[{"kind": "transfer", "steps": 1, "tokens": 1}]), "either tokens or steps", None),
        (changed(stages=[{"kind": "distill", "steps": 1, "kl": 0, "ce": 0}]), "nothing to minimise", None),
        (
            changed(stages=[{"kind": "distill", "steps": 1, "trainable": "full", "lora": {"r": 3}}]),
            "lora is given",
            None,
        ),
        (changed(data={"files": ["a"], "samples": {}}), "exclude each other", None),
        (changed(draft={"vocabulary": 4, "top": 5}), "more than the draft vocabulary", None),
        (changed(layers=[1, 1]), "twice", None),
        (changed(seed=-1), "seed", None),
        (changed(export={"precisions": ["fp64"]}), "export.precisions.0", None),
        (changed(method={"window": 0}), "method.window", None),
    ],
)
def test_mistakes_are_named_with_a_cure(data, message, hint):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(data, "my.yaml")
    assert str(caught.value).startswith("my.yaml")
    assert message in str(caught.value)
    assert caught.value.hint
    assert hint is None or hint in caught.value.hint


def test_overrides(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("data: {files: [a.txt]}\nstages:\n- {kind: transfer, tokens: 5}\n", encoding="utf-8")
    overrides = ["stages.0.tokens=7", "method.window=32", "draft.heads=3", "data.files=[b.txt, c.txt]"]
    recipe = load_recipe(path, overrides)
    assert recipe.stages[0].tokens == 7
    assert recipe.method.window == 32
    assert recipe.draft.heads == 3
    assert recipe.data.files == ("b.txt", "c.txt")
    assert recipe.name == "r"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "not key=value"),
        ("=3", "not key=value"),
        ("stages.4.tokens=1", "'4' is not one of the 2 entries"),
        ("description.x=1", "nothing can be set"),
        ("sed=1", "unknown key 'sed'"),
        ("seed=[", "not valid YAML"),
    ],
)
def test_bad_overrides(override, message):
    with pytest.raises(RecipeError, match=r"override|unknown key") as caught:
        load_recipe("smoke", [override])
    assert message in str(caught.value)


@pytest.mark.parametrize("content", ["- a\n", "a: [", ""])
def test_bad_files(tmp_path, content):
    path = tmp_path / "bad.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert "bad.yaml" in str(caught.value)


def test_no_such_recipe():
    with pytest.raises(RecipeError, match="no recipe 'dmo'") as caught:
        load_recipe("dmo")
    assert "demo" in caught.value.hint


def test_imports_without_torch():
    code = (
        "import sys; sys.modules.update(torch=None, transformers=None)\n"
        "import lineahead.recipes.load as l, lineahead.recipes.manifest\n"
        "print(l.load_recipe('smoke').name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "smoke", done.stderr
