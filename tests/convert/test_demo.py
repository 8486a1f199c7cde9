"""The demo's recipe fits any model's positions, and its text is the same everywhere for one Python."""

from lineahead.convert import demo
from lineahead.convert.demo import TEST_FILE, TRAIN_FILE, _write_manual, fit, prepare
from lineahead.recipes.load import load_recipe


def test_lengths_are_cut_to_the_models_positions_and_nothing_else_changes():
    recipe = load_recipe("smoke", ["eval.context=[32, 128]"])
    found = fit(recipe, 48)
    assert [stage.sequence_length for stage in found.stages] == [48, 48]
    assert found.data.samples.sequence_length == 48
    assert found.draft.samples.sequence_length == 32
    assert found.eval.context == (32, 48)
    assert found.stages[1].lora == recipe.stages[1].lora
    assert found.method == recipe.method


def test_a_recipe_that_fits_stays_as_it_is():
    recipe = load_recipe("demo")
    assert fit(recipe, None) == recipe
    assert fit(recipe, 1 << 20).stages == recipe.stages


def test_training_and_evaluation_text_do_not_overlap(tmp_path):
    _write_manual(tmp_path)
    train, test = ((tmp_path / name).read_text() for name in (TRAIN_FILE, TEST_FILE))
    assert not set(train.split("\n\n")) & set(test.split("\n\n"))
    assert len(train) > 300_000
    assert len(test) > 80_000


def test_a_second_run_does_nothing_also_when_lengths_were_cut(
    source, text, recipe, tmp_path, one_thread, monkeypatch, compared_here
):
    monkeypatch.setattr(demo, "PRECISIONS", ("fp32",))
    wanted = recipe(
        {"kind": "transfer", "steps": 1, "sequence_length": 512, "batch_size": 1},
        draft={"samples": {"tokens": 64, "sequence_length": 32, "batch_size": 2}, "vocabulary": 16},
        eval={"context": [512], "tokens": 256},
    )
    first, second = [], []
    prepare(str(source), tmp_path / "made", wanted, text=text, announce=first.append)
    manifest = prepare(str(source), tmp_path / "made", wanted, text=text, announce=second.append)
    assert not any("done before" in line for line in first)
    assert all(line.endswith("done before") for line in second)
    assert len(second) == 6
    assert manifest.recipe["stages"][0]["sequence_length"] == 128
    assert {one.kind for one in manifest.exports} == {"verifier", "draft"}
