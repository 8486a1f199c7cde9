"""CONTRIBUTING's page "Add a method", followed to the letter in a copy of the package."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
LEFT_OUT = (".*", "tests", "docs", "build", "dist", "artifacts", "benchmarks", "*.safetensors")
PROGRAM = """
import json, sys
from pathlib import Path
import torch
from click.testing import CliRunner
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

copy, source, artifact, commands = sys.argv[1:]
words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
PreTrainedTokenizerFast(tokenizer_object=words, unk_token="a", eos_token="b").save_pretrained(source)
sizes = dict(vocab_size=40, hidden_size=16, intermediate_size=16, num_attention_heads=2)
LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=2)).save_pretrained(source)

import lineahead
from lineahead.cli import main
assert Path(lineahead.__file__).parent == Path(copy), lineahead.__file__
made = {}
for command in json.loads(commands):
    result = CliRunner().invoke(main, [*command, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, (command, result.output)
    made[command[0]] = json.loads(result.stdout)
model = AutoModelForCausalLM.from_pretrained(artifact, trust_remote_code=True)
settings = model.config.lineahead["layers"][0]["settings"]
logits = model(torch.arange(2, 30)[None]).logits
print(json.dumps({"made": made, "settings": settings, "finite": bool(logits.isfinite().all())}))
"""


def page():
    """The path, the file and the commands that the page gives."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    text = re.search(r"^## Add a method$(.*?)^## ", text, re.M | re.S).group(1)
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.M | re.S)
    assert [language for language, _ in blocks] == ["python", "sh"]
    (path,) = re.findall(r"`(plugins/\S+\.py)`, whole:", text)
    return path, blocks[0][1], [shlex.split(line) for line in blocks[1][1].splitlines()]


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_page_adds_a_method_with_mathematics_of_its_own(tmp_path):
    """One new file: every form agrees with the reference, `convert` takes it, artifacts carry it."""
    path, file, commands = page()
    copy, source, artifact = tmp_path / "lineahead", tmp_path / "model", tmp_path / "artifact"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LEFT_OUT))
    before = contents(copy)
    assert not (copy / path).exists()
    (copy / path).write_text(file, encoding="utf-8")
    places = {"MODEL": str(source), "OUT": str(artifact)}
    assert all(command[0] == "lineahead" for command in commands)
    given = json.dumps([[places.get(word, word) for word in command[1:]] for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(copy), str(source), str(artifact), given],
        env={
            **os.environ,
            "PYTHONPATH": str(tmp_path),
            "LINEAHEAD_OPERATOR": "function",
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(tmp_path / "home"),
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    cells = [cell for cell in answer["made"]["conformance"]["cells"] if cell["kind"] == "decoder"]
    assert {cell["preset"] for cell in cells} == {"squares", "augmented-squares"}
    assert {cell["status"] for cell in cells} == {"ok", "absent"}
    agreeing = {cell["form"] for cell in cells if cell["status"] == "ok"}
    assert agreeing == {"reference", "training", "generate", "step", "onnxruntime"}
    calls = {cell["scenario"] for cell in cells if (cell["form"], cell["status"]) == ("onnxruntime", "ok")}
    assert calls >= {"prefill", "chunked prefill", "decode", "chain", "tree", "batch"}
    assert answer["settings"]["feature_map"] == "squares"
    assert answer["finite"]

    after = contents(copy)
    assert {name for name in after if after[name] != before.get(name)} == {path}
    assert set(before) <= set(after)
