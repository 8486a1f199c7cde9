"""A study from recipe to report: cells, killed runs, refusals, tables beside the paper's."""

import csv
import io
import json
from dataclasses import replace

import pytest
import tiny_two_sided
import torch

from lineahead.convert.source import load_source
from lineahead.convert.study import cell as cell_module
from lineahead.convert.study.cell import Job, run_cell
from lineahead.convert.study.grid import cells, spelled_out
from lineahead.convert.study.models import starting_point
from lineahead.convert.study.paper import ANCHORS, LOCAL_CONV
from lineahead.convert.study.report import write_report
from lineahead.convert.study.result import FOLDER, Result, load_result, save_result, thinned
from lineahead.convert.study.run import run_study
from lineahead.convert.study.table import as_csv, as_markdown, tables
from lineahead.errors import ArchitectureError, InputError
from lineahead.plugins.augmented_attention.methods import PRESETS
from lineahead.recipes.load import parse
from lineahead.recipes.study.schema import LabelTask, NamedMethod, Study, StudyModel

CONFIG = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 32}
STAGE = {
    "kind": "distill", "trainable": "full", "kl": 0.0, "ce": 1.0, "steps": 8, "sequence_length": 32,
    "batch_size": 2, "learning_rate": 1e-2, "base_learning_rate": 1e-2,
}  # fmt: skip


class Killed(BaseException):
    """Not caught by anything, like a kill."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    (folder / "text.txt").write_text("a quick brown fox jumps over a lazy dog again and again. " * 60)
    pairs = [f"{word} {word} film\t{label}\n" for word, label in (("good", 1), ("bad", 0)) for _ in range(20)]
    (folder / "labels.tsv").write_text("sentence\tlabel\n" + "".join(pairs))
    return folder


@pytest.fixture
def study(files):
    def make(**changes):
        text, labels = str(files / "text.txt"), str(files / "labels.tsv")
        model = {"architecture": "gpt2", "config": CONFIG, "vocabulary": 300, "family": "gpt2"}
        data = {
            "precision": "fp32",
            "models": {"gpt2": model},
            "tasks": {
                "text": {
                    "kind": "perplexity", "data": {"files": [text]}, "files": {"wikitext2": text},
                    "context": 32, "tokens": 128,
                },
                "sst2": {"kind": "accuracy", "train": labels, "test": labels},
            },
            "grid": [
                {"model": "gpt2", "task": "text", "methods": ["softmax", "augmented"], "stages": [STAGE],
                 "settings": {"window": 8}}
            ],
        }  # fmt: skip
        return parse(Study, {**data, **changes}, "test")

    return make


@pytest.fixture
def job(study, tmp_path, one_thread):
    return Job(study=study(), folder=tmp_path / "study", device="cpu")


def test_a_study_runs_once_and_reports(job, tmp_path):
    told = []
    found = run_study(job, announce=told.append)
    assert [one.status for one in found] == ["done", "done"]
    assert all(1 < one.figures["wikitext2"] < 300 for one in found)
    assert found[0].figures != found[1].figures
    assert not list((job.folder / "work").iterdir())
    assert len(told) == 4
    assert run_study(job, announce=told.append) == found
    assert len(told) == 4
    report = write_report(job.study, job.folder, command="lineahead study test", plots=False)
    assert [path.name for path in report.files] == ["table.md", "table.csv", "table.json"]
    assert report.unfinished == ()
    assert f"{found[1].figures['wikitext2']:.2f}" in (job.folder / "table.md").read_text()


def test_plots_are_pictures(job):
    pytest.importorskip("matplotlib")
    run_study(job)
    report = write_report(job.study, job.folder, command="x")
    pictures = [path for path in report.files if path.suffix == ".png"]
    assert {path.name for path in pictures} == {"loss-gpt2-text.png", "bars-gpt2-text-wikitext2.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)


def test_a_curve_is_the_last_stages(study, tmp_path, one_thread):
    row = {"model": "gpt2", "task": "text", "methods": ["augmented"], "settings": {"window": 8}}
    wanted = study(grid=[{**row, "stages": [STAGE, {**STAGE, "steps": 3}]}])
    (found,) = run_study(Job(study=wanted, folder=tmp_path, device="cpu"))
    assert [tokens for tokens, _ in found.curve] == [64, 128, 192]
    assert found.steps == 8 + 3


def test_a_killed_cell_goes_on_and_ends_the_same(study, tmp_path, one_thread):
    calls = []

    def kill(step):
        calls.append(step)
        if len(calls) == 5:
            raise Killed

    wanted = study(checkpoint_seconds=1e-9)
    killed = Job(study=wanted, folder=tmp_path / "killed", device="cpu", on_step=kill)
    with pytest.raises(Killed):
        run_study(killed, only=["gpt2-text-augmented"])
    assert list((killed.folder / "work").iterdir())
    (again,) = run_study(killed, only=["gpt2-text-augmented"])
    assert calls[5] == 6
    (whole,) = run_study(
        Job(study=wanted, folder=tmp_path / "whole", device="cpu"), only=["gpt2-text-augmented"]
    )
    assert again.figures == whole.figures
    assert again.curve == whole.curve


def test_classification_of_separable_texts(study, tmp_path, one_thread):
    stage = {
        "kind": "classify",
        "steps": 30,
        "sequence_length": 12,
        "batch_size": 8,
        "base_learning_rate": 1e-2,
    }
    row = {"model": "gpt2", "task": "sst2", "methods": ["augmented"], "stages": [stage]}
    (result,) = run_study(Job(study=study(grid=[row]), folder=tmp_path, device="cpu"))
    assert result.figures["accuracy"] > result.figures["majority"] == 50


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor:UserWarning"
)  # torch.compile asks every input
def test_a_compiled_cell_is_judged_at_every_window(study, tmp_path, one_thread):
    """Longer windows have tables of their own; compiling changes rounding alone."""
    task = study().tasks["text"].model_copy(update={"context": 16, "longer": (32,)})
    tasks = {"text": task.model_dump(mode="json")}
    folders = {False: tmp_path / "eager", True: tmp_path / "compiled"}
    found = {}
    for compiled, folder in folders.items():
        wanted = study(compile=compiled, tasks=tasks)
        (found[compiled],) = run_study(Job(study=wanted, folder=folder, device="cpu"), only=["*-augmented"])
    assert list(found[True].figures) == ["wikitext2", "wikitext2 at 32"]
    assert found[True].figures == pytest.approx(found[False].figures, rel=1e-3)
    assert found[True].digest == found[False].digest
    assert found[True].tokens_per_s
    page = write_report(wanted, folders[True], command="x").files
    assert "## gpt2, text: wikitext2 at 32" in page[0].read_text()
    assert any(path.name == "bars-gpt2-text-wikitext2-at-32.png" for path in page)


def test_a_recipe_that_changed_runs_again(job, study):
    run_study(job, only=["gpt2-text-softmax"])
    other = Job(study=study(precision="bf16"), folder=job.folder, device="cpu")
    old, new = (load_result(job.folder, cells(one.study)[0]) for one in (job, other))
    assert old is not None
    assert new is None


def test_time_and_shares(job):
    told = []
    assert run_study(job, seconds=-1, announce=told.append) == []
    assert "time is up" in told[-1]
    assert [one.cell for one in run_study(job, shard="1/2")] == ["gpt2-text-augmented"]
    for wrong in ("2/2", "1", "a/b"):
        with pytest.raises(InputError, match="is not I/N"):
            run_study(job, shard=wrong)
    with pytest.raises(InputError, match="no cell 'bert"):
        run_study(job, only=["bert*"])


def test_variants_of_flash_are_trained_each_with_its_config(study, tmp_path, one_thread):
    config = {"num_hidden_layers": 1, "hidden_size": 16, "key_size": 8, "rotary_size": 4, "group_size": 8}
    flash = {"architecture": "lineahead_flash", "config": config, "vocabulary": 300, "family": "flash"}
    variants = {"local": {"parts": "local"}, "local + global": {}, "augmented": {"conv_taps": 3}}
    row = {"model": "flash", "task": "text", "variants": variants, "stages": [STAGE]}
    wanted = study(models={"flash": flash}, grid=[row])
    found = run_study(Job(study=wanted, folder=tmp_path, device="cpu"))
    assert [one.cell for one in found] == [f"flash-text-{name}" for name in variants]
    assert [one.status for one in found] == ["done"] * 3
    assert len({one.figures["wikitext2"] for one in found}) == 3
    assert found[2].parameters == found[1].parameters + 4
    (table,) = tables(wanted, cells(wanted), {one.cell: one for one in found})
    assert [row.paper_plain for row in table.rows] == [16.65, 16.14, 15.16]
    odd = {**row, "variants": {"odd": {"parts": "none"}}}
    wanted = study(models={"flash": flash}, grid=[odd])
    (failed,) = run_study(Job(study=wanted, folder=tmp_path, device="cpu"))
    assert failed.status == "failed"
    assert "models.flash: parts='none'" in failed.reason


def test_cells_that_differ_in_their_name_alone_are_trained_once(study, tmp_path, one_thread):
    same = {"name": "augmented-twin", "preset": "augmented", "window": 8}
    row = {
        "model": "gpt2",
        "task": "text",
        "methods": ["augmented", same],
        "stages": [STAGE],
        "settings": {"window": 8},
    }
    job, steps = Job(study=study(grid=[row]), folder=tmp_path, device="cpu"), []
    found = run_study(replace(job, on_step=steps.append))
    assert len(steps) == STAGE["steps"]
    assert [one.cell for one in found] == ["gpt2-text-augmented", "gpt2-text-augmented-twin"]
    assert found[0].figures == found[1].figures
    assert [load_result(tmp_path, one) for one in cells(job.study)] == found


@pytest.mark.parametrize("head", ["ForMaskedLM", "Model", "ForSequenceClassification"])
def test_an_encoder_checkpoint_gets_a_new_head(head, tmp_path):
    """Its body is the checkpoint's, whatever head that had; a pooler that was not in it is new."""
    source = tiny_two_sided.save(tmp_path / "source", "Bert", head)
    task = LabelTask(kind="accuracy", train="train.tsv", test="test.tsv")
    model, tokenizer = starting_point(
        "bert", StudyModel(base=str(source)), task, labels=5, seed=1, folder=tmp_path
    )
    assert type(model).__name__ == "BertForSequenceClassification"
    assert (model.config.num_labels, model.config.pad_token_id) == (5, tokenizer.pad_token_id)
    body = load_source(source).model.base_model.state_dict()
    for name, weight in body.items():
        assert torch.equal(model.base_model.state_dict()[name], weight), name


def test_all_methods_come_from_the_registry():
    def names(*wanted):
        methods = [NamedMethod.model_validate(one) for one in wanted]
        return [one.name for one in spelled_out(methods)]

    assert names("softmax", "all") == ["softmax", *PRESETS]
    for name in [one for one in PRESETS if f"augmented-{one}" in PRESETS]:
        assert names(name) == [name, f"augmented-{name}"]
    assert names({"name": "mine", "preset": "augmented", "window": 8}, "mistake") == ["mine", "mistake"]


def test_impossible_settings_and_models_are_results(study, tmp_path, monkeypatch, one_thread):
    odd = {"name": "odd", "preset": "augmented", "local": "softmax"}
    wanted = study(grid=[{"model": "gpt2", "task": "text", "methods": [odd, "augmented"], "stages": [STAGE]}])

    def refuse(*_):
        raise ArchitectureError("not this one")

    monkeypatch.setattr(cell_module, "linearize", refuse)
    found = run_study(Job(study=wanted, folder=tmp_path, device="cpu"))
    assert [one.status for one in found] == ["refused", "refused"]
    told = []
    run_study(Job(study=wanted, folder=tmp_path, device="cpu"), announce=told.append)
    assert len(told) == 4
    assert "local='softmax'" in found[0].reason
    page = write_report(wanted, tmp_path, command="x", plots=False).files[0].read_text()
    assert "| augmented | refused |" in page
    assert "- augmented: refused: not this one" in page


def test_a_broken_cell_does_not_stop_the_others(job, monkeypatch):
    def explode(*_, **__):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(cell_module, "evaluate", explode)
    result = run_cell(cells(job.study)[0], job)
    assert (result.status, result.reason) == ("failed", "RuntimeError: out of memory")


def grid_of(study, methods, seeds=(0,), task="text"):
    stage = STAGE if task == "text" else {"kind": "classify", "steps": 1}
    row = {"model": "gpt2", "task": task, "methods": methods, "stages": [stage], "seeds": seeds}
    return study(grid=[row])


def test_tables_have_the_papers_figures_and_means_over_seeds(study):
    wanted = grid_of(study, ["softmax", {"name": "flash-local", "preset": "augmented"}], (0, 1))
    grid = cells(wanted)
    values = dict(zip((one.name for one in grid), (10.0, 30.0, 8.0, 9.0), strict=True))
    found = {
        one.name: Result(cell=one.name, digest="", status="done", figures={"wikitext2": values[one.name]})
        for one in grid
    }
    (table,) = tables(wanted, grid, found)
    softmax, local = table.rows
    means = {row.method: row.plain.value for row in table.rows}
    assert sorted(means.values()) == sorted([(10 + 8) / 2, (30 + 9) / 2])
    assert softmax.paper_plain is None
    assert (local.paper_plain, local.paper_augmented) == (56.80, 39.26)
    page = as_markdown(wanted, [table], found, "x")
    assert "| 56.80 | 39.26 |" in page
    rows = list(csv.DictReader(io.StringIO(as_csv(grid, found))))
    assert [float(row["value"]) for row in rows] == list(values.values())


def test_better_is_bold_in_both_directions(study):
    pairs = [one for one in PRESETS if f"augmented-{one}" in PRESETS]
    if not pairs:
        pytest.skip("no method with an augmented form")
    for task, figure, better in (("text", "wikitext2", (20.0, 15.0)), ("sst2", "accuracy", (70.0, 75.0))):
        wanted = grid_of(study, pairs[:1], task=task)
        grid = cells(wanted)
        for values, bold in ((better, True), (better[::-1], False)):
            found = {
                one.name: Result(cell=one.name, digest="", status="done", figures={figure: value})
                for one, value in zip(grid, values, strict=True)
            }
            page = as_markdown(wanted, tables(wanted, grid, found), found, "x")
            assert ("**" in page) == bold


def test_a_damaged_result_is_named(job):
    (one, _) = cells(job.study)
    save_result(job.folder, Result(cell=one.name, digest=one.digest, status="done"))
    path = job.folder / FOLDER / f"{one.name}.json"
    path.write_text(path.read_text()[:-9])
    with pytest.raises(InputError, match=r"softmax\.json: damaged"):
        load_result(job.folder, one)


def test_no_results_no_report(job):
    with pytest.raises(InputError, match="no results"):
        write_report(job.study, job.folder, command="x")


def test_curves_are_thinned_to_means():
    points = [(float(i), float(i)) for i in range(1, 301)]
    found = thinned(points, 100)
    assert len(found) == 100
    assert found[0] == (3.0, 2.0)
    assert thinned([], 10) == ()


def test_the_papers_tables_are_whole():
    assert len({(one.family, one.figure) for one in ANCHORS}) == len(ANCHORS)
    figures = {one.figure: one for one in ANCHORS if one.family == "gpt2"}
    assert figures["ptb"].plain[LOCAL_CONV] == 84.24


def test_command(run, job, files, tmp_path, monkeypatch):
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(json.dumps(job.study.model_dump(mode="json", exclude={"name"})))
    result = run("study", recipe, "-o", tmp_path / "out", "--device", "cpu", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [one["status"] for one in report["cells"]] == ["done", "done"]
    again = run("study", recipe, "-o", tmp_path / "out", "--report")
    assert again.exit_code == 0
    assert "gpt2-text-augmented" in again.stdout
