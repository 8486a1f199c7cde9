"""One function per reader of files that come from elsewhere: bytes in, a LineaheadError or nothing out."""

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lineahead.errors import LineaheadError


@dataclass(frozen=True, kw_only=True)
class Target:
    """A reader: `run` writes the bytes into a folder and reads them; `seeds` are files that it accepts."""

    name: str
    run: Callable[[bytes, Path], None]
    seeds: Callable[[], list[bytes]]


def safetensors(header=None, *, body=b"\0" * 24):
    """A safetensors file with this header."""
    head = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}} if header is None else header
    text = json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text + body


def read_weights(data: bytes, folder: Path) -> None:
    from lineahead.convert.intact import weight_files
    from lineahead.runtime.artifact_check import _safetensors_fault

    path = folder / "model.safetensors"
    path.write_bytes(data)
    _safetensors_fault(path)
    weight_files(folder)


def read_index(data: bytes, folder: Path) -> None:
    from lineahead.convert.intact import weight_files
    from lineahead.runtime.artifact_check import _weights

    (folder / "model.safetensors").write_bytes(safetensors())
    (folder / "model.safetensors.index.json").write_bytes(data)
    _weights(folder)
    weight_files(folder)


def read_gguf(data: bytes, folder: Path) -> None:
    from lineahead.convert.gguf.file import open_gguf
    from lineahead.convert.gguf.tokenizer import load_tokenizer
    from lineahead.convert.gguf.weights import config_entries, family

    path = folder / "model.gguf"
    path.write_bytes(data)
    file = open_gguf(path)
    for step in (
        lambda: [file.read(name) for name in file.tensors],
        lambda: family(file),
        lambda: config_entries(file),
        lambda: load_tokenizer(file),
    ):
        try:
            step()
        except LineaheadError:
            continue


def gguf(tokens=("<s>", "</s>", "a", "b", "ab")):
    """A small GGUF file with a tokenizer and one tensor."""

    def text(value):
        return struct.pack("<Q", len(value.encode())) + value.encode()

    def entry(key, kind, payload):
        return text(key) + struct.pack("<I", kind) + payload

    def array(kind, items):
        return struct.pack("<IQ", kind, len(items)) + b"".join(items)

    entries = [
        entry("general.architecture", 8, text("llama")),
        entry("llama.block_count", 4, struct.pack("<I", 1)),
        entry("llama.embedding_length", 4, struct.pack("<I", 32)),
        entry("llama.feed_forward_length", 4, struct.pack("<I", 32)),
        entry("llama.attention.head_count", 4, struct.pack("<I", 2)),
        entry("llama.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", 1e-5)),
        entry("llama.context_length", 4, struct.pack("<I", 64)),
        entry("tokenizer.ggml.model", 8, text("gpt2")),
        entry("tokenizer.ggml.pre", 8, text("smollm")),
        entry("tokenizer.ggml.tokens", 9, array(8, [text(one) for one in tokens])),
        entry("tokenizer.ggml.merges", 9, array(8, [text("a b")])),
        entry("tokenizer.ggml.token_type", 9, array(5, [struct.pack("<i", 1)] * len(tokens))),
        entry("tokenizer.ggml.bos_token_id", 4, struct.pack("<I", 0)),
    ]
    tensor = text("token_embd.weight") + struct.pack("<IQQIQ", 2, 32, len(tokens), 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(entries)) + b"".join(entries) + tensor
    return head + b"\0" * (-len(head) % 32) + np.ones((len(tokens), 32), np.float32).tobytes()


def read_state(data: bytes, folder: Path) -> None:
    from lineahead.runtime import state

    path = folder / "text.state"
    path.write_bytes(data)
    state.load(path, identity="model")


def states():
    import tempfile

    from lineahead.runtime import state

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s"
        tensors = {"past.length": np.array([3]), "past.0.state": np.ones((1, 2, 3), np.float32)}
        state.save(path, tensors, identity="model", tokens=[[1, 2, 3]])
        return [path.read_bytes()]


def read_manifest(data: bytes, folder: Path) -> None:
    from lineahead.recipes import manifest

    (folder / manifest.FILE).write_bytes(data)
    manifest.read_manifest(folder)


def manifests():
    from lineahead.recipes.manifest import Base, Manifest, Model

    model = Model(
        vocab_size=9,
        hidden_size=4,
        layers=1,
        linear_layers=(0,),
        settings={},
        parameters=1,
        new_parameters=0,
        state_bytes=1,
    )
    made = Manifest(base=Base(reference="x", model_type="llama"), recipe={}, model=model)
    return [made.model_dump_json().encode()]


def read_config(data: bytes, folder: Path) -> None:
    from lineahead.runtime.artifact import read_artifact

    (folder / "config.json").write_bytes(data)
    read_artifact(folder)


def examine(data: bytes, folder: Path) -> None:
    from lineahead.recipes.manifest import FILE
    from lineahead.runtime.artifact_check import examine_artifact

    (folder / FILE).write_bytes(manifests()[0])
    (folder / "config.json").write_bytes(data)
    (folder / "model.safetensors").write_bytes(safetensors())
    examine_artifact(folder)


def configs():
    layers = [{"index": 0, "settings": {}}]
    found = {"vocab_size": 9, "n_positions": 64, "eos_token_id": [1, 2], "lineahead": {"layers": layers}}
    return [json.dumps(found).encode(), json.dumps({"text_config": found}).encode()]


def read_tokenizer(data: bytes, folder: Path) -> None:
    from lineahead.runtime.tokenizer import Tokenizer

    (folder / "tokenizer.json").write_bytes(data)
    tokenizer = Tokenizer(folder)
    tokenizer.decode(tokenizer.encode("a b"))


def read_tokenizer_config(data: bytes, folder: Path) -> None:
    from lineahead.runtime.tokenizer import Tokenizer

    (folder / "tokenizer.json").write_bytes(tokenizers()[0])
    (folder / "tokenizer_config.json").write_bytes(data)
    tokenizer = Tokenizer(folder)
    tokenizer.chat([{"role": "user", "content": "a"}])


def tokenizers():
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")]))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return [made.to_str().encode()]


def tokenizer_configs():
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
    found = {"bos_token": {"content": "<s>"}, "eos_token": "a", "chat_template": template}
    named = {"chat_template": [{"name": "default", "template": template}]}
    return [json.dumps(one).encode() for one in (found, named)]


def read_graph(data: bytes, folder: Path) -> None:
    from lineahead.runtime.backends.external_data import check_external_data

    (folder / "graph.onnx.data").write_bytes(b"\0" * 64)
    path = folder / "graph.onnx"
    path.write_bytes(data)
    check_external_data(path)


def graphs(location="graph.onnx.data", **place):
    import onnx
    from onnx import TensorProto, helper

    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": "0", "length": "16", **place}.items():
        tensor.external_data.add(key=key, value=value)
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [out], [tensor])
    made: onnx.ModelProto = helper.make_model(graph, ir_version=10)
    return [made.SerializeToString()]


def read_adapter(data: bytes, folder: Path) -> None:
    from lineahead.convert.adapter import read_adapter as read

    path = folder / "adapter.safetensors"
    path.write_bytes(data)
    read(path)


def adapters():
    from lineahead.convert.adapter import FORMAT

    metadata = {"format": FORMAT, "base": "x", "layers": "[]", "training": "[]"}
    place = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    return [safetensors({"__metadata__": metadata, "a": place})]


def read_recipe(data: bytes, folder: Path) -> None:
    from lineahead.recipes.load import load_recipe

    path = folder / "recipe.yaml"
    path.write_bytes(data)
    load_recipe(path)


def recipes():
    from lineahead.recipes.load import shipped_recipes

    return [path.read_bytes() for path in shipped_recipes().values()]


def read_prompts(data: bytes, folder: Path) -> None:
    from lineahead.runtime.bench.prompts import read_prompts as read

    path = folder / "prompts.jsonl"
    path.write_bytes(data)
    read(path, 3)


def read_certificate(data: bytes, folder: Path) -> None:
    from lineahead.runtime.certificate.document import FILE, stale_files

    (folder / FILE).write_bytes(data)
    stale_files(folder)


TARGETS = {
    target.name: target
    for target in (
        Target(name="safetensors", run=read_weights, seeds=lambda: [safetensors()]),
        Target(
            name="index",
            run=read_index,
            seeds=lambda: [json.dumps({"weight_map": {"a": "model.safetensors"}}).encode()],
        ),
        Target(name="gguf", run=read_gguf, seeds=lambda: [gguf()]),
        Target(name="state", run=read_state, seeds=states),
        Target(name="manifest", run=read_manifest, seeds=manifests),
        Target(name="config", run=read_config, seeds=configs),
        Target(name="artifact", run=examine, seeds=configs),
        Target(name="tokenizer", run=read_tokenizer, seeds=tokenizers),
        Target(name="tokenizer_config", run=read_tokenizer_config, seeds=tokenizer_configs),
        Target(name="graph", run=read_graph, seeds=graphs),
        Target(name="adapter", run=read_adapter, seeds=adapters),
        Target(name="recipe", run=read_recipe, seeds=recipes),
        Target(
            name="prompts",
            run=read_prompts,
            seeds=lambda: [
                b'{"prompt": "a"}\n{"turns": ["b"]}\n',
                b"a\nb\n",
                b'[{"conversations": [{"from": "human", "value": "a"}]}]',
            ],
        ),
        Target(
            name="certificate",
            run=read_certificate,
            seeds=lambda: [json.dumps({"hashes": {"config.json": "0"}}).encode()],
        ),
    )
}
