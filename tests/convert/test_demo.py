"""The demo's recipe fits any model's positions, and its text is the same everywhere for one Python."""

from lineahead.convert.demo import TEST_FILE, TRAIN_FILE, _write_manual, fit
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
