"""The single file that artifacts carry: complete, and the same model where lineahead does not exist."""

import ast
import subprocess
import sys

import pytest
import torch

from lineahead.plugins.augmented_attention.huggingface.bundle import bundle
from lineahead.plugins.augmented_attention.methods import PRESETS

PROGRAM = """
import sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM, set_seed
try:
    import lineahead
except ImportError:
    pass
else:
    sys.exit("lineahead was importable")
given = torch.load(sys.argv[1], weights_only=True)
ids, mask = given["ids"], given["mask"]
for artifact in map(Path, sys.argv[2:]):
    model = AutoModelForCausalLM.from_pretrained(artifact, trust_remote_code=True).eval()
    made = {"logits": model(input_ids=ids).logits.detach()}
    made["greedy"] = model.generate(ids, max_new_tokens=70, do_sample=False)
    made["beam"] = model.generate(ids, max_new_tokens=20, num_beams=3, do_sample=False)
    made["padded"] = model.generate(ids, attention_mask=mask, max_new_tokens=30, do_sample=False)
    made["lookup"] = model.generate(ids[:1], max_new_tokens=40, do_sample=False, prompt_lookup_num_tokens=3)
    set_seed(0)
    made["sample"] = model.generate(ids, max_new_tokens=30, do_sample=True)
    sizes = []
    for length in (90, 400):
        result = model(input_ids=ids[:1, :1].expand(1, length), use_cache=True)
        cache = model(input_ids=ids[:1, :1], past_key_values=result.past_key_values).past_key_values
        sizes.append(sum(layer.nbytes for layer in cache.layers))
    made["sizes"] = torch.tensor(sizes)
    copy = artifact.with_name(f"{artifact.name}-again")
    model.save_pretrained(copy)
    again = AutoModelForCausalLM.from_pretrained(copy, trust_remote_code=True).eval()
    made["again"] = again(input_ids=ids).logits.detach()
    torch.save(made, artifact.with_suffix(".pt"))
"""
METHODS = ("augmented", "softmax-hedgehog", "augmented-performer", "yoso")


@pytest.fixture
def loaded_elsewhere(linear_model, tokens, tmp_path, without_lineahead):
    """Models by their method, the texts, and what one process without lineahead made of their artifacts."""
    ids = tokens(2, 50)
    mask = torch.ones_like(ids)
    mask[0, :9] = 0
    torch.save({"ids": ids, "mask": mask}, tmp_path / "given.pt")
    models = {}
    for name in METHODS:
        settings = PRESETS[name]
        models[name] = linear_model(settings, "llama" if settings.qk_norm else "gpt2")
        models[name].save_pretrained(tmp_path / name)
    files = [str(tmp_path / name) for name in ("given.pt", *METHODS)]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *files],
        env=without_lineahead,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    made = {name: torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in METHODS}
    return models, ids, mask, made


def test_artifacts_work_without_lineahead(loaded_elsewhere, full_pass):
    models, ids, mask, made = loaded_elsewhere
    for name, model in models.items():
        same_elsewhere(model, ids, mask, made[name], full_pass)


def same_elsewhere(model, ids, mask, made, full_pass):
    from transformers import set_seed

    expected = full_pass(model, ids)
    assert (made["logits"] - expected).abs().max() <= 1e-5
    assert (made["again"] - expected).abs().max() <= 1e-5
    assert made["sizes"][0] == made["sizes"][1]
    greedy = model.generate(ids, max_new_tokens=70, do_sample=False)
    assert torch.equal(made["greedy"], greedy)
    assert torch.equal(made["beam"], model.generate(ids, max_new_tokens=20, num_beams=3, do_sample=False))
    padded = model.generate(ids, attention_mask=mask, max_new_tokens=30, do_sample=False)
    assert torch.equal(made["padded"], padded)
    assert torch.equal(made["lookup"], model.generate(ids[:1], max_new_tokens=40, do_sample=False))
    set_seed(0)
    assert torch.equal(made["sample"], model.generate(ids, max_new_tokens=30, do_sample=True))


def test_the_file_imports_torch_and_transformers_only():
    tree = ast.parse(bundle())
    roots = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            roots.add(node.module.split(".")[0])
    assert roots - set(sys.stdlib_module_names) == {"torch", "transformers"}


def test_the_file_opens_no_connection_and_runs_no_text():
    """What it imports, and calls by bare name: nothing that reaches the network, a shell or a pickle."""
    tree = ast.parse(bundle())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    roots = {name.split(".")[0] for name in imported}
    assert not roots & {
        "socket",
        "ssl",
        "http",
        "urllib",
        "ftplib",
        "subprocess",
        "pickle",
        "marshal",
        "ctypes",
    }
    called = {ast.unparse(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not set(called) & {"exec", "eval", "compile", "__import__", "os.system", "os.popen", "torch.load"}
    named = [node for name, node in called.items() if name.endswith("import_module")]
    assert all(isinstance(node.args[0], ast.Constant) for node in named)


def test_each_thing_is_written_once_and_always_the_same():
    text = bundle()
    names = [node.name for node in ast.parse(text).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    assert len(names) == len(set(names))
    assert text == bundle()


def test_package_and_bundle_live_in_one_process(
    settings, linear_model, tokens, full_pass, tmp_path, monkeypatch
):
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))

    model, ids = linear_model(settings), tokens(1, 80)
    model.save_pretrained(tmp_path / "one-process")
    remote = AutoModelForCausalLM.from_pretrained(tmp_path / "one-process", trust_remote_code=True).eval()
    assert type(remote).__module__ != type(model).__module__
    assert remote.config._attn_implementation != model.config._attn_implementation
    assert torch.equal(full_pass(remote, ids), full_pass(model, ids))
    assert torch.equal(remote.generate(ids, max_new_tokens=9), model.generate(ids, max_new_tokens=9))
