"""A loopback Hub, a client that talks to it, and a small artifact that was really converted."""

import importlib.util
import os
import shutil
import sys
import types
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lineahead.convert.drafts.medusa import MedusaConfig, MedusaHeads, save_heads
from lineahead.convert.pipeline import convert_checkpoint
from lineahead.recipes.load import parse_recipe
from lineahead.recipes.manifest import Draft, Evaluation, read_manifest, write_manifest

FOLDER = Path(__file__).parent
LETTERS = "abcdefghijklmnopqrstuvwxyz .\n"


def load(name, file):
    """Import a file beside this one (test folders are not packages)."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, FOLDER / file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


hub_routes = load("hub_routes", "hub_routes.py")
hub_server = load("hub_server", "hub_server.py")


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """An artifact of a random Llama of two layers, with draft heads and a measured perplexity."""
    source, artifact = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("made") / "artifact"
    vocabulary = {letter: number for number, letter in enumerate(["?", "<end>", *LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?", eos_token="<end>").save_pretrained(
        source
    )
    torch.manual_seed(0)
    sizes = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=1,
        **sizes,
    )
    LlamaForCausalLM(config).save_pretrained(source)
    (source / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    recipe = parse_recipe({"method": {"window": 8, "conv_taps": 4}}, "test")
    convert_checkpoint(source, artifact, recipe)
    save_heads(
        MedusaHeads(MedusaConfig(heads=2, hidden_size=96, vocabulary=31, top=4), torch.arange(31)), artifact
    )
    measured = Evaluation(
        file="text.txt",
        file_hash="0" * 64,
        context=128,
        stride=128,
        tokens=1000,
        perplexity={"teacher": 10.0, "student": 11.5},
        bits_per_byte={"teacher": 1.0, "student": 1.1},
    )
    heads = Draft(
        folder="draft",
        kind="medusa",
        heads=2,
        vocabulary=31,
        tokens=9,
        data_hash="",
        top1=(0.5,),
        top5=(0.7,),
    )
    manifest = read_manifest(artifact)
    write_manifest(artifact, manifest.model_copy(update={"evaluations": (measured,), "drafts": (heads,)}))
    return artifact


@pytest.fixture
def artifact(made, tmp_path):
    """A copy to change."""
    return Path(shutil.copytree(made, tmp_path / "artifact"))


@pytest.fixture
def hub():
    """A Hub in this process."""
    made = hub_server.Hub()
    yield made
    made.close()


@pytest.fixture
def environment(hub, tmp_path):
    """Variables for a process of its own that talks to the loopback Hub, logged in."""
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": hub_routes.TOKEN,
        "HF_HOME": str(tmp_path / "home"),
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture
def waits(monkeypatch):
    """Seconds that somebody meant to wait; nobody does."""
    seen = []
    clock = types.SimpleNamespace(sleep=seen.append, time=__import__("time").time)
    monkeypatch.setattr("huggingface_hub.utils._http.time", clock)
    monkeypatch.setattr("lineahead.convert.hub.failures.time", clock)
    return seen


@pytest.fixture
def online(hub, monkeypatch, waits, tmp_path):
    """Point this process's Hub client at the loopback Hub, logged in."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": False,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_TOKEN_PATH": str(tmp_path / "token"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", hub.url)
    monkeypatch.setenv("HF_TOKEN", hub_routes.TOKEN)
    close_session()
    yield hub
    close_session()
