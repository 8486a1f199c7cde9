"""The commands one after another on a tiny checkpoint: each result feeds the next."""

import json
import subprocess
import sys

import pytest

from lineahead import errors

TEXT = "the quick brown fox jumps over the lazy dog. " * 20


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random two-layer Llama and a tokenizer of bytes with a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1, **{one: 2 + i for i, one in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = "{% for m in messages %}{{ bos_token }}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def artifact(checkpoint, tmp_path_factory):
    """The checkpoint converted, fine-tuned, with draft heads, exported, all by commands."""
    from click.testing import CliRunner

    from lineahead.cli import main

    folder = tmp_path_factory.mktemp("artifact") / "tiny"
    for arguments in (
        ["convert", str(checkpoint), str(folder), "--recipe", "smoke", "method.window=16"],
        ["finetune", str(folder)],
        ["draft", str(folder)],
        ["export", "onnx", str(folder), "--precision", "fp32"],
    ):
        result = CliRunner().invoke(main, ["-q", *arguments, "--json"], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        json.loads(result.stdout)
    return folder


def test_doctor_finds_no_problem(run, artifact):
    result = run("doctor", artifact, "--json")
    assert result.exit_code == 0
    checks = {one["check"]: one["status"] for one in json.loads(result.stdout)["findings"]}
    assert checks["draft draft"] == checks["onnx/verifier.onnx"] == checks["onnx/draft.onnx"] == "ok"


def test_the_overrides_reach_the_model(artifact):
    layers = json.loads((artifact / "config.json").read_text())["lineahead"]["layers"]
    assert [one["settings"]["window"] for one in layers] == [16, 16]


@pytest.mark.parametrize("speculate", ["lookup", "medusa"])
@pytest.mark.parametrize("shape", ["--tree", "--chain"])
def test_speculation_does_not_change_the_text(run, artifact, speculate, shape):
    common = ("generate", artifact, "--prompt", "hello", "--max-new-tokens", 40, "--ignore-eos", "--json")
    plain = json.loads(run(*common).stdout)
    found = json.loads(run(*common, "--speculate", speculate, shape, "--draft-length", 4).stdout)
    assert found["text"] == plain["text"]
    assert found["lossless"]
    assert plain["statistics"]["tokens"] == 40


def test_a_draft_model_does_not_change_the_text(run, artifact):
    """In a process of its own: its graphs share the process's pool of threads."""
    common = ("generate", artifact, "--prompt", "hello", "--max-new-tokens", 40, "--ignore-eos", "--json")
    draft = ("--speculate", "model", "--draft-precision", "fp32", "--draft-length", 3)
    command = [sys.executable, "-m", "lineahead.cli", *map(str, (*common, *draft))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["text"] == json.loads(run(*common).stdout)["text"]
    assert found["statistics"]["accepted"] == found["statistics"]["proposed"] > 10


def test_the_linear_twin_writes_the_originals_text(run, checkpoint, artifact, tmp_path, compared_here):
    original = tmp_path / "original"
    for arguments in (
        ("convert", checkpoint, original, "--recipe", "original"),
        ("export", "onnx", original, "--precision", "fp32"),
    ):
        result = run(*arguments)
        assert result.exit_code == 0, result.output
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one two three\nfour five six\n")
    asked = ("--prompts", prompts, "--tokens", 24, "--original", checkpoint, "--json")
    twin = ("--draft-model", artifact, "--draft-precision", "fp32")
    command = [sys.executable, "-m", "lineahead.cli", *map(str, ("verify", original, *asked, *twin))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["identical"]
    model, judged = report["checks"][-2:]
    assert (model["drafter"], judged["drafter"]) == ("model", "original")
    assert model["accepted"] > 0
    assert judged["tokens"] == 48
    for command, word in (
        (("verify", artifact, *asked), "2 layers"),
        (("verify", original, "--certificate", *asked), "--certificate with --original"),
        (("finetune", original, "--recipe", "smoke", "data.samples={}"), "adds no parameters"),
        (("conformance", original), "no layer is converted"),
    ):
        assert word in run(*command).stderr
    assert run("doctor", original).exit_code == 0


def test_lookup_and_a_draft_model_together_do_not_change_the_text(run, artifact):
    common = ("generate", artifact, "--prompt", "hello", "--max-new-tokens", 40, "--ignore-eos", "--json")
    draft = ("--speculate", "auto", "--draft-model", artifact, "--draft-precision", "fp32")
    command = [sys.executable, "-m", "lineahead.cli", *map(str, (*common, *draft, "--draft-length", 4))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["text"] == json.loads(run(*common).stdout)["text"]
    # Lookup proposes nothing in this text; how much the model may, the governor says, by the clock.
    assert found["statistics"]["accepted"] > 0
    refused = run(*common, "--speculate", "lookup", *draft[2:])
    assert "--draft-model with --speculate lookup" in refused.stderr


def test_a_draft_model_must_be_an_artifact(artifact, checkpoint):
    from lineahead.runtime.artifact import read_artifact
    from lineahead.runtime.generate import open_drafter

    with pytest.raises(errors.ArtifactError):
        open_drafter(read_artifact(artifact), "model", model=checkpoint)


def test_generate_reads_standard_input_and_streams_to_standard_output(run, artifact):
    options = ("--max-new-tokens", 8, "--temperature", 0.7, "--seed", 3)
    piped = run("generate", artifact, *options, "--stats", input="hello")
    assert piped.exit_code == 0
    assert piped.stdout == run("generate", artifact, "--prompt", "hello", *options).stdout
    assert json.loads(piped.stderr.splitlines()[-1])["tokens"] >= 1


def test_chat_is_the_default_where_there_is_a_template(run, artifact):
    common = ("generate", artifact, "--prompt", "hello", "--max-new-tokens", 8, "--json")
    read = {
        name: json.loads(run(*common, *flags).stdout)["statistics"]["prompt_tokens"]
        for name, flags in {"default": (), "chat": ("--chat",), "raw": ("--raw",)}.items()
    }
    assert read["default"] == read["chat"] > read["raw"]


def test_typical_acceptance_says_that_it_is_lossy(run, artifact):
    flags = ("--typical", "--speculate", "medusa", "--temperature", 1.0, "--json")
    result = run("generate", artifact, "--prompt", "hello", "--max-new-tokens", 8, *flags)
    assert json.loads(result.stdout)["lossless"] is False


@pytest.mark.parametrize(
    ("options", "kind", "word"),
    [
        (("--prompt", " "), errors.InputError, "empty"),
        (("--prompt", "x" * 300), errors.InputError, "256"),
        (("--prompt", "x", "--precision", "int4"), errors.ArtifactError, "int4"),
        (("--prompt", "x", "--top-p", "2"), errors.InputError, "top_p"),
    ],
)
def test_bad_input_is_one_line_with_a_cure(run, artifact, options, kind, word):
    result = run("generate", artifact, *options)
    assert result.exit_code == kind.exit_code
    first, second = result.stderr.splitlines()
    assert first.startswith("Error: ")
    assert word in first
    assert second.startswith("Hint: ")
    assert result.stdout == ""


def test_verify_exits_0_and_says_identical(run, artifact, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one two three\nfour five six\n")
    result = run("verify", artifact, "--prompts", prompts, "--tokens", 24, "--batch", 2, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["identical"] is True
    assert {"chain", "tree", "lookup"} <= {one["drafter"] for one in report["checks"]}


def test_eval_puts_the_teacher_beside_the_student_and_remembers(run, artifact, tmp_path):
    text = tmp_path / "fox.txt"
    text.write_text(TEXT)
    result = run("eval", artifact, text, "--context", 64, "--tokens", 256, "--json")
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)
    assert row["ratio"] == pytest.approx(row["student"] / row["teacher"])
    kept = json.loads((artifact / "lineahead.json").read_text())["evaluations"]
    assert [one["file"] for one in kept] == ["fox.txt"]


@pytest.mark.parametrize("where", [("--backend", "tensorrt", "--precision", "fp16"), ("--device", "cuda")])
def test_bench_of_a_gpu_that_is_not_there_names_the_cure(run, artifact, where, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    result = run("bench", artifact, *where)
    assert result.exit_code == errors.BackendError.exit_code
    assert "cuda-python" in result.stderr


def test_bench_reports_ratios(run, artifact):
    sizes = ("--context", 16, "--context", 48, "--samples", 2, "--threads", 1)
    result = run("bench", artifact, *sizes, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["decode"]["fp32"]["achieved_gb_s"] > 0
    assert any("ms at 48" in name for name in report["ratios"])


@pytest.mark.parametrize(
    ("arguments", "kind", "word"),
    [
        (("convert", "no-such-folder", "out"), errors.CheckpointError, "no-such-folder"),
        (("convert", "{checkpoint}", "out", "-c", "smok"), errors.RecipeError, "smok"),
        (("convert", "{checkpoint}", "out", "method.windw=3"), errors.RecipeError, "windw"),
        (("convert", "{checkpoint}", "out", "method.preset=x"), errors.RecipeError, "x"),
        (("finetune", "no-such-folder"), errors.ArtifactError, "no-such-folder"),
        (("eval", "{artifact}", "absent.txt"), errors.InputError, "absent.txt"),
        (("verify", "{artifact}", "--prompts", "absent.txt"), errors.InputError, "absent.txt"),
        (("verify", "{artifact}", "--original", "package:some"), errors.InputError, "package:some"),
        (("bench", "{artifact}", "--baseline", "some.gguf"), errors.InputError, "some.gguf"),
    ],
)
def test_mistakes_are_named_and_leave_nothing_behind(
    run, checkpoint, artifact, tmp_path, monkeypatch, arguments, kind, word
):
    monkeypatch.chdir(tmp_path)
    places = {"checkpoint": checkpoint, "artifact": artifact}
    result = run(*(str(one).format(**places) for one in arguments))
    assert result.exit_code == kind.exit_code, result.output
    assert word in result.stderr.splitlines()[0]
    assert result.stderr.splitlines()[1].startswith("Hint: ")
    assert list(tmp_path.iterdir()) == []


def test_architectures_measures_what_it_is_asked(run):
    result = run("architectures", "llama", "--workers", 1, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["exact"] == 1


def test_demo_runs_once_and_resumes_where_it_was(run, checkpoint, tmp_path, monkeypatch, compared_here):
    monkeypatch.chdir(tmp_path)
    first = run("demo", checkpoint, "--recipe", "smoke", "method.window=16", "--json")
    assert first.exit_code == 0, first.output
    rows = {row.pop(""): row for row in json.loads(first.stdout)}
    names = " ".join(rows)
    for word in (
        "perplexity",
        "tokens/s, fp32, plain",
        "tokens/s, int4, medusa",
        "tokens per step",
        "at 32K",
    ):
        assert word in names
    sizes = rows["decoding state, bytes at 32K tokens"]
    assert sizes["teacher (softmax)"] == 32 * rows["decoding state, bytes at 1K tokens"]["teacher (softmax)"]
    second = run("demo", checkpoint, "--recipe", "smoke", "method.window=16")
    assert second.exit_code == 0, second.output
    steps = [line for line in second.stderr.splitlines() if line.endswith("done before")]
    assert len(steps) == 6


@pytest.mark.slow
def test_a_hybrid_model_from_conversion_to_verification(checkpoint, tmp_path, compared_here):
    from click.testing import CliRunner

    from lineahead.cli import main

    folder, found = tmp_path / "hybrid", {}
    for arguments in (
        ["convert", str(checkpoint), str(folder), "-c", "smoke", "method.window=16", "--keep-softmax", "1"],
        ["finetune", str(folder)],
        ["export", "onnx", str(folder), "--precision", "fp32", "--precision", "int4"],
        ["verify", str(folder), "--tokens", "24", "--precision", "int4"],
    ):
        result = CliRunner().invoke(main, ["-q", *arguments, "--json"], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        found[arguments[0]] = json.loads(result.stdout)
    assert found["convert"]["linear_layers"] == [0]
    row = 4 * 2 * (8 + 8)
    layer = {"index": 1, "window": 0, "state_bytes": 0, "bytes_per_token": row}
    assert found["convert"]["softmax_layers"] == [layer]
    assert found["verify"]["identical"]
