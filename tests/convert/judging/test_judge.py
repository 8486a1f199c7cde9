"""Agreement by brute force; a task of lm-eval from local files; what is kept, shown and written."""

import functools
import json
import shutil

import pytest
import torch

from lineahead.convert.judging import tasks as tasks_module
from lineahead.convert.judging.agreement import measure_agreement
from lineahead.convert.judging.judge import Wanted, judge
from lineahead.convert.judging.pair import Pair
from lineahead.convert.judging.tasks import LineaheadLM, measure_tasks
from lineahead.convert.pipeline import Options, convert_checkpoint, finetune
from lineahead.convert.training.progress import Silent
from lineahead.errors import InputError
from lineahead.plugins.augmented_attention.huggingface.attention import teacher
from lineahead.recipes.manifest import read_manifest


def test_agreement_is_what_both_models_say(tiny_linear_llama):
    ids = torch.arange(100) * 13 % 97
    found = measure_agreement(Pair(student=tiny_linear_llama), ids, context=48, file="x")
    rows = ids[:96].reshape(2, 48)
    with torch.no_grad():
        ours = tiny_linear_llama(input_ids=rows, use_cache=False).logits.log_softmax(-1)
        with teacher():
            theirs = tiny_linear_llama(input_ids=rows, use_cache=False).logits.log_softmax(-1)
    assert found.tokens == 96
    assert found.top1 == pytest.approx(float((ours.argmax(-1) == theirs.argmax(-1)).float().mean()))
    assert found.kl == pytest.approx(float((theirs.exp() * (theirs - ours)).sum(-1).mean()), rel=1e-4)
    assert found.kl > 0


@pytest.fixture
def long_artifact(source, recipe, tmp_path, one_thread):
    """An untrained artifact with room for questions."""
    folder = tmp_path / "long"
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 1024}))
    convert_checkpoint(folder, tmp_path / "artifact", recipe())
    return tmp_path / "artifact"


@pytest.fixture
def task(tmp_path):
    """A folder with a multiple-choice task of four questions."""
    rows = [{"q": f"ab c{i}", "choices": ["dd", "ee f"], "gold": i % 2} for i in range(4)]
    (tmp_path / "rows.json").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "tiny_choice.yaml").write_text(
        f"""
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path}/rows.json}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
    )
    return tmp_path


@pytest.mark.filterwarnings("ignore")  # lm-eval and datasets warn of their own habits
def test_a_task_scores_each_model_as_its_own_logits_do(
    tiny_linear_llama, tiny_tokenizer, task, monkeypatch, tmp_path
):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    own = functools.partial(tasks_module.TaskManager, include_defaults=False)  # reading all others takes 10 s
    monkeypatch.setattr(tasks_module, "TaskManager", own)
    tiny_tokenizer.eos_token = "~"
    found = measure_tasks(Pair(student=tiny_linear_llama), tiny_tokenizer, ["tiny_choice"], include=task)
    assert [(one.task, one.cases) for one in found] == [("tiny_choice", 4)]
    assert found[0].metric.startswith("acc")
    rows = [json.loads(line) for line in (task / "rows.json").read_text().splitlines()]

    def likelihood(prompt, choice):
        ids = torch.tensor(tiny_tokenizer(prompt + choice)["input_ids"])[None]
        with torch.no_grad():
            logits = tiny_linear_llama(input_ids=ids, use_cache=False).logits.log_softmax(-1)[0, :-1]
        return float(logits.gather(1, ids[0, 1:, None])[-len(choice) :].sum())

    def accuracy():
        picks = [max((0, 1), key=lambda i: likelihood(row["q"], " " + row["choices"][i])) for row in rows]
        return sum(pick == row["gold"] for pick, row in zip(picks, rows, strict=True)) / len(rows)

    assert found[0].value["student"] == accuracy()
    with teacher():
        assert found[0].value["teacher"] == accuracy()


@pytest.mark.filterwarnings("ignore")
def test_a_task_that_is_not_known_is_refused(tiny_linear_llama, tiny_tokenizer):
    with pytest.raises(InputError, match="no task 'no_such_task'"):
        measure_tasks(Pair(student=tiny_linear_llama), tiny_tokenizer, ["no_such_task"])


@pytest.mark.filterwarnings("ignore")
def test_an_artifact_is_a_model_of_lm_eval(artifact):
    model = LineaheadLM(str(artifact), batch_size=1)
    with torch.no_grad():
        assert model.model(input_ids=torch.tensor([[1, 2, 3]])).logits.shape[:2] == (1, 3)


def test_results_are_kept_until_the_weights_change(long_artifact, text, recipe):
    artifact = long_artifact
    wanted = Wanted(recall=(512,), cases=2, agreement=(text,), contexts=(64, 128), tokens=256)
    judge(artifact, wanted)
    found = judge(artifact, wanted)
    manifest = read_manifest(artifact)
    assert manifest.recalls == found.recalls
    assert [one.context for one in manifest.agreements] == [64, 128]
    stage = {"kind": "transfer", "steps": 1}
    finetune(artifact, recipe(stage), Options(device="cpu", progress=Silent()))
    manifest = read_manifest(artifact)
    assert manifest.recalls == manifest.agreements == ()


def test_the_command_writes_a_report(long_artifact, text, run):
    artifact = long_artifact
    result = run(
        "eval", artifact, text, "--context", "32", "--context", "64", "--tokens", "256", "--agreement",
        "--recall", "256", "--recall", "512", "--cases", "2", "--report", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert next(row for row in rows if "ratio" in row)["context"] == 32
    folder = artifact / "report"
    page = (folder / "report.md").read_text()
    for title in ("## Perplexity", "## Recall", "## Agreement", "## Decoding state"):
        assert title in page
    for name in ("perplexity", "recall", "agreement"):
        assert f"({name}.png)" in page
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    states = json.loads((folder / "report.json").read_text())["state_bytes"]
    assert states[1]["student"] == states[0]["student"]
    assert states[1]["teacher"] == 4 * states[0]["teacher"] > 0


def test_a_context_beyond_the_positions_is_refused(artifact):
    with pytest.raises(InputError, match="a context of 256 is longer than the position table of 128"):
        judge(artifact, Wanted(recall=(256,)))


def test_a_report_of_nothing_is_refused(artifact, run):
    result = run("eval", artifact, "--report")
    assert result.exit_code != 0
    assert "nothing was measured yet" in result.stderr
