"""The conformance kit: everything agrees as it is, every damage is seen, and its page says so."""

import json

import pytest

from lineahead.convert.conformance import measure as measure_module
from lineahead.convert.conformance import oracle
from lineahead.convert.conformance import report as report_module
from lineahead.convert.conformance import run as run_module
from lineahead.convert.conformance.artifact import measure_artifact
from lineahead.convert.conformance.cells import ABSENT, ABSENT_OF, BOUND, FORMS, SCENARIOS, Cell, absence
from lineahead.convert.conformance.measure import Subject
from lineahead.convert.conformance.report import measure_all, summary
from lineahead.convert.conformance.run import measure_subject, run_grid, subjects
from lineahead.convert.conformance.table import as_markdown, counts
from lineahead.errors import ArchitectureError, InputError
from lineahead.plugins.augmented_attention.huggingface import attention, cache, seq2seq_step, step_model
from lineahead.plugins.augmented_attention.huggingface import summary as summary_module
from lineahead.plugins.augmented_attention.methods import PRESETS

QUICK = tuple(form for form in FORMS if form != "onnxruntime")


def by_status(cells, status):
    return {(cell.form, cell.scenario): cell for cell in cells if cell.status == status}


@pytest.mark.parametrize("preset", list(PRESETS))
def test_every_method_agrees_or_is_refused_with_a_reason(preset, one_thread):
    cells = measure_subject(Subject(family="llama", kind="decoder", preset=preset, forms=QUICK))
    assert len(cells) == len(QUICK) * len(SCENARIOS)
    assert not by_status(cells, "failed")
    refused = by_status(cells, "refused")
    assert all(cell.reason for cell in refused.values())
    if not refused:
        measured = by_status(cells, "ok")
        assert ("training", "left padding") in measured
        assert {("generate", one) for one in SCENARIOS} - set(measured) == {
            ("generate", one) for one in ("tree", "encoder", "cross attention")
        }
        assert {"chain", "tree", "batch", "GQA"} <= {
            scenario for form, scenario in measured if form == "step"
        }


@pytest.mark.long  # with one that a reader adds, it agrees in test_adding_a_method.py
def test_onnxruntime_agrees(one_thread):
    subject = Subject(family="gpt2", kind="decoder", preset="augmented", forms=("onnxruntime",))
    cells = measure_subject(subject)
    assert set(by_status(cells, "ok")) == {
        ("onnxruntime", one) for one in ("prefill", "chunked prefill", "decode", "chain", "tree", "batch")
    }


def off(form, index=0):
    """The form with its output a little off."""

    def wrong(*args, **kwargs):
        result = form(*args, **kwargs)
        return (result[0] + 1e-2, *result[1:]) if isinstance(result, tuple) else result + 1e-2

    return wrong


@pytest.mark.parametrize(
    ("place", "name", "forms"),
    [
        (step_model, "step", {"step"}),
        (cache, "step", {"generate"}),
        (attention, "whole_text", {"reference", "training"}),
        (measure_module, "scaled_error", {*QUICK}),
    ],
)
def test_a_damaged_form_fails_and_the_others_do_not(place, name, forms, monkeypatch, one_thread):
    monkeypatch.setattr(place, name, off(getattr(place, name)))
    subject = Subject(family="llama", kind="decoder", preset="augmented", forms=QUICK)
    cells = measure_subject(subject)
    assert {form for form, _ in by_status(cells, "failed")} == forms
    assert not summary(cells).conforms


@pytest.mark.parametrize(
    ("family", "preset"), [*(("bert", name) for name in PRESETS), ("roberta", "augmented")]
)
def test_encoders(family, preset, one_thread):
    cells = measure_subject(Subject(family=family, kind="encoder", preset=preset, forms=QUICK))
    assert not by_status(cells, "failed")
    assert not by_status(cells, "refused")
    padded = {("training", one) for one in ("encoder", "batch", "left padding")}
    assert set(by_status(cells, "ok")) == {("reference", "encoder"), *padded}


@pytest.mark.parametrize(
    ("family", "preset"),
    [
        ("bart", "augmented"),
        *(("t5", one) for one in ("linformer", "flash-local", "augmented-relu", "softmax-hedgehog")),
    ],
)
def test_encoder_decoders(family, preset, one_thread):
    cells = measure_subject(Subject(family=family, kind="encoder-decoder", preset=preset))
    assert not by_status(cells, "failed")
    refused = by_status(cells, "refused")
    if all(cell.status != "ok" for cell in cells):
        assert {cell.reason.partition(":")[2] for cell in refused.values()} & {
            " cross attention needs a sum over the source",
        } or all("linformer" in cell.reason for cell in refused.values())
        return
    assert {form for form, _ in refused} == {"onnxruntime"}
    assert all("cannot be exported yet" in cell.reason for cell in refused.values())
    steps = ("prefill", "chunked prefill", "decode", "chain", "batch", "cross attention")
    assert set(by_status(cells, "ok")) == {
        *(("reference", one) for one in ("encoder", "prefill", "cross attention")),
        *(("training", one) for one in ("encoder", "prefill", "batch", "cross attention")),
        *(("generate", one) for one in steps),
        *(("step", one) for one in (*steps, "tree")),
    }


@pytest.mark.parametrize(
    ("family", "place", "name", "forms"),
    [
        ("bert", attention, "whole_text", {"reference", "training"}),
        ("bert", measure_module, "scaled_error", {"reference", "training"}),
        ("t5", attention, "whole_text", {"reference", "training", "generate"}),
        ("t5", cache, "step", {"generate"}),
        ("t5", step_model, "step", {"step"}),
        ("t5", seq2seq_step, "whole_text", {"step"}),
        ("t5", summary_module.SummaryLayer, "attend", {"generate"}),
        ("t5", oracle, "_across", set(QUICK)),
    ],
)
def test_damage_behind_an_encoder_is_seen(family, place, name, forms, monkeypatch, one_thread):
    monkeypatch.setattr(place, name, off(getattr(place, name)))
    kind = "encoder" if family == "bert" else "encoder-decoder"
    cells = measure_subject(Subject(family=family, kind=kind, preset="augmented", forms=QUICK))
    assert {form for form, _ in by_status(cells, "failed")} == forms


def test_a_summary_of_padding_is_seen(monkeypatch, one_thread):
    """The shorter row's padding is summed up: only calls of several rows see it."""
    monkeypatch.setattr(seq2seq_step, "source_columns", lambda *_: None)
    cells = measure_subject(Subject(family="t5", kind="encoder-decoder", preset="augmented", forms=("step",)))
    assert set(by_status(cells, "failed")) == {("step", "batch"), ("step", "cross attention")}


def test_a_form_that_breaks_is_a_failure_with_its_reason(monkeypatch, one_thread):
    def explode(*_, **__):
        raise RuntimeError("lost\nits way")

    monkeypatch.setattr(cache, "step", explode)
    cells = measure_subject(Subject(family="llama", kind="decoder", preset="augmented", forms=("generate",)))
    assert {cell.reason for cell in by_status(cells, "failed").values()} == {"RuntimeError: lost its way"}


def test_what_cannot_be_served_is_refused_by_name(monkeypatch):
    def refuse(*_):
        raise ArchitectureError("mixes over positions")

    monkeypatch.setattr(run_module, "linearize", refuse)
    cells = measure_subject(Subject(family="llama", kind="decoder", preset="augmented"))
    met = [absence("decoder", form, scenario) is None for form in FORMS for scenario in SCENARIOS]
    assert len(by_status(cells, "refused")) == sum(met)
    assert {cell.reason for cell in cells if cell.status == "refused"} == {"mixes over positions"}
    assert not summary(cells).conforms


def test_the_grid_comes_from_the_registries():
    assert {one.preset for one in subjects()} == set(PRESETS)
    kinds = {one.kind for one in subjects(["bert"])}
    assert kinds == {"decoder", "encoder"}
    assert {one.kind for one in subjects(["t5"])} == {"encoder-decoder"}
    assert len(subjects(["llama"], ["augmented"], ["step"])) == 1
    with pytest.raises(InputError, match="no family 'lama'"):
        subjects(["lama"])
    with pytest.raises(InputError, match="no preset 'x'"):
        subjects([], ["x"])


def test_a_run_is_resumed_from_its_cells(tmp_path, monkeypatch):
    calls = []

    def quick(subject):
        calls.append(subject.preset)
        return [subject.cell("step", "tree", status="ok", error=1e-7)]

    monkeypatch.setattr(run_module, "measure_subject", quick)
    output = tmp_path / "page.md"
    first, *others = PRESETS
    measure_all(["llama"], [first], ["step"], output=output)
    found = measure_all(["llama"], [], ["step"], output=output)
    assert calls == [first, *others]
    assert {cell.preset for cell in found} == set(PRESETS)
    assert all(name in output.read_text() for name in PRESETS)
    monkeypatch.setattr(report_module, "versions", lambda: {"lineahead": "other"})
    monkeypatch.setattr(run_module, "versions", lambda: {"lineahead": "other"})
    measure_all(["llama"], [first], ["step"], output=output)
    assert calls[-1] == first


def test_runs_that_share_a_page_keep_each_others_cells(tmp_path, monkeypatch):
    """While one run measures, another begins and ends on the same page."""
    output = tmp_path / "page.md"

    def quick(subject):
        if subject.preset == "augmented":
            measure_all(["llama"], ["relu"], ["step"], output=output)
        return [subject.cell("step", "tree", status="ok", error=1e-7)]

    monkeypatch.setattr(run_module, "measure_subject", quick)
    found = measure_all(["llama"], ["augmented"], ["step"], output=output)
    assert {cell.preset for cell in found} == {"augmented"}
    assert "| llama | 1e-07 | 1e-07 |" in output.read_text()


def test_processes_give_the_same_cells(one_thread):
    grid = subjects(["llama"], ["augmented"], ["training"])
    (here,), (there,) = (list(run_grid(grid, workers=workers)) for workers in (1, 2))
    assert [(one.scenario, one.status) for one in here] == [(one.scenario, one.status) for one in there]


def cell(**changes):
    facts = {"family": "llama", "kind": "decoder", "preset": "augmented", "form": "step", "scenario": "tree"}
    return Cell(**{**facts, "status": "ok", "error": 2e-7, **changes})


def test_the_page_shows_the_worst_of_each_kind():
    cells = [
        cell(),
        cell(scenario="chain", error=3e-6),
        cell(preset="other", status="refused", error=None, reason="encoders only"),
        cell(family="bert", kind="encoder", status="failed", error=0.5, reason="differs"),
    ]
    page = as_markdown(cells, {"torch": "2"}, ["lineahead conformance"])
    assert "2 cells agree, 1 fail, 1 are refused" in page
    assert "| llama | 3e-06 | refused |" in page
    assert "| bert (encoder) | **1 failed** | not run |" in page
    assert "- encoders only: llama other" in page
    assert "- differs: bert augmented step tree" in page
    assert counts(cells) == {"failed": 1, "ok": 2, "refused": 1, "absent": 0}
    assert [row["family"] for row in summary(cells).rows] == ["bert"]


def test_what_does_not_meet_is_known_by_name():
    assert {form for form, _ in ABSENT} <= set(FORMS)
    assert {scenario for _, scenario in ABSENT} <= set(SCENARIOS)
    assert {scenario for one in ABSENT_OF.values() for scenario in one} <= set(SCENARIOS)


def test_forms_are_added_to_a_run_and_the_page_names_what_made_it(tmp_path, monkeypatch):
    ran = []

    def quick(subject):
        ran.extend((subject.preset, form) for form in subject.forms)
        return [subject.cell(form, "prefill", status="ok", error=1e-7) for form in subject.forms]

    monkeypatch.setattr(run_module, "measure_subject", quick)
    output = tmp_path / "page.md"
    measure_all(["llama"], ["augmented", "relu"], ["training", "step"], output=output)
    found = measure_all(["llama"], ["relu"], ["step", "onnxruntime"], output=output)
    assert ran[-1] == ("relu", "onnxruntime")
    assert len(ran) == 5
    assert {cell.form for cell in found} == {"step", "onnxruntime"}
    page = output.read_text()
    assert "| llama | not run | 1e-07 |" in page
    for command in (
        "lineahead conformance --family llama --preset augmented --form training --form step\n",
        "lineahead conformance --family llama --preset relu --form training --form step --form onnxruntime\n",
    ):
        assert command in page


@pytest.fixture
def trained(artifact):
    """An artifact whose operators' weights matter."""
    import torch

    from lineahead.convert.checkpoint import load_artifact, save_artifact
    from lineahead.convert.tiny_models import randomize
    from lineahead.recipes.manifest import read_manifest

    model, tokenizer = load_artifact(artifact, dtype=torch.float32)
    randomize(model)
    save_artifact(model, tokenizer, artifact, manifest=read_manifest(artifact))
    return artifact


@pytest.mark.parametrize("own_code", [False, True], ids=["our code", "its own code"])
def test_an_artifact_is_measured_without_training(trained, own_code):
    cells = measure_artifact(trained, forms=QUICK, trust_remote_code=own_code)
    assert not by_status(cells, "failed")
    ok = by_status(cells, "ok")
    assert {"reference", "training", "generate", "step"} == {form for form, _ in ok}
    assert all(one.error < BOUND for one in ok.values())
    assert {one.preset for one in cells} == {"its own settings"}


def test_command(run, trained, tmp_path):
    flags = ("--family", "llama", "--preset", "augmented", "--form", "training", "--workers", 1)
    output = tmp_path / "page.md"
    result = run("conformance", *flags, "--output", output, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["conforms"] is True
    assert output.read_text().startswith("# Conformance")
    assert run("conformance", trained, "--form", "step").exit_code == 0
    missing = run("conformance", tmp_path / "absent")
    assert missing.exit_code == 5
    assert "absent" in missing.stderr


def test_the_exit_status_tells_of_a_failure(run, monkeypatch):
    monkeypatch.setattr(step_model, "step", off(step_model.step))
    flags = ("--family", "llama", "--preset", "augmented", "--form", "step", "--workers", 1)
    assert run("conformance", *flags).exit_code == 1
