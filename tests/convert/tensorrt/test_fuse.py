"""Fused operators in the engine's graph: what is recognised, what is left alone, and the same results."""

import itertools
from collections import Counter
from types import SimpleNamespace

import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lineahead.convert.onnx.graph import save, trace
from lineahead.convert.onnx.rollout import cases, run
from lineahead.convert.replace import linearize
from lineahead.convert.tensorrt.build import wide_nodes
from lineahead.convert.tensorrt.check import scaled_error
from lineahead.convert.tensorrt.fuse import count_fused, fuse, fused_text
from lineahead.convert.tensorrt.graph import engine_graph, save_for_check, save_for_engine
from lineahead.convert.tensorrt.passes import simplify
from lineahead.convert.tensorrt.products import merge_products
from lineahead.convert.tensorrt.twin import graph_backend
from lineahead.plugins.augmented_attention.huggingface.step_model import StepModel
from lineahead.plugins.augmented_attention.methods import preset
from lineahead.plugins.step_fusions.schema import FUSIONS, OWN_FIELDS

SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3,
}  # fmt: skip
FAMILIES = {
    "llama": {},
    "qwen2": {},
    "gemma3_text": {"head_dim": 8, "sliding_window": 16},
}
# AddRMSNorm, RMSNorm, RotaryHeads, GatedUnit, RotaryTable; Gemma 3 normalizes queries, keys and what is
# added, too.
COUNTS = {"llama": (4, 1, 2, 2, 1), "qwen2": (4, 1, 2, 2, 1), "gemma3_text": (4, 9, 0, 2, 1)}
# Largest difference from the exported graph over the largest value: measured up to 1.3e-6, and 6.5e-3.
BOUND = {"fp32": 1e-5, "fp16": 1e-2}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """A tiny model of one architecture, its exported graph and its state."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(request.param, **SIZES, **FAMILIES[request.param])
    model = AutoModelForCausalLM.from_config(config).eval()
    layers = linearize(model, preset("softmax-hedgehog", window=8))
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "norm.weight")) or ".lineahead." in name:
            parameter.data += 0.2 * torch.randn_like(parameter)
    step = StepModel(model, layers)
    path = tmp_path_factory.mktemp(request.param) / "verifier.onnx"
    save(trace(step), path)
    return SimpleNamespace(name=request.param, path=path, step=step)


def lowered(family, tmp_path, precision, *, fused=True):
    """The engine's graph, and a session of it with its bodies."""
    model = engine_graph(family.path, precision, fused=fused)
    save_for_check(model, tmp_path / f"{precision}.onnx")
    return model, onnxruntime.InferenceSession(str(tmp_path / f"{precision}.onnx"))


@pytest.mark.parametrize("precision", BOUND)
def test_the_fused_graph_says_what_the_exported_one_says(family, precision, tmp_path):
    reference = onnxruntime.InferenceSession(str(family.path))
    names = [port.name for port in reference.get_inputs()]
    outputs = [port.name for port in reference.get_outputs()]
    _, session = lowered(family, tmp_path, precision)
    judged, empty, worst = (
        graph_backend(session, names, outputs),
        [x.numpy() for x in family.step.empty(1)],
        0.0,
    )

    def exported(arrays):
        return reference.run(None, dict(zip(names, arrays, strict=True)))

    for case in cases((8,), SIZES["vocab_size"])[:2]:
        for expected, found in zip(run(exported, case, empty), run(judged, case, empty), strict=True):
            worst = max(worst, *map(scaled_error, expected, found))
    assert 0 < worst < BOUND[precision]


def test_what_is_recognised_is_counted_and_takes_its_parts_with_it(family):
    model = engine_graph(family.path, "fp16", fused=True)
    assert count_fused(model.graph) == dict(zip(FUSIONS, COUNTS[family.name], strict=True))
    kinds = Counter(node.op_type for node in model.graph)
    norms = sum(COUNTS[family.name][:2])
    rotary, gated = COUNTS[family.name][2:4]
    words = f"fused {norms} norms, {rotary} rotary embeddings, {gated} gated units"
    assert fused_text(model.graph) == words
    assert not {"Sqrt", "Div", "Sigmoid", "Tanh", "ReduceMean", "Cos", "Sin"} & set(kinds)
    assert kinds["Split"] == (4 + 2 if family.name == "gemma3_text" else 0)
    plain = Counter(node.op_type for node in engine_graph(family.path, "fp16").graph)
    assert sum(kinds.values()) < sum(plain.values()) - 30 * SIZES["num_hidden_layers"]
    assert not set(FUSIONS) & set(plain)


def test_ports_are_narrow_but_for_the_wide_ones(family):
    for node in engine_graph(family.path, "fp16", fused=True).graph:
        if node.op_type in FUSIONS:
            fusion = FUSIONS[node.op_type]
            for ports, values in ((fusion.inputs, node.inputs), (fusion.outputs, node.outputs)):
                for name, value in zip(ports, values, strict=True):
                    wide = ir.DataType.FLOAT if name in fusion.wide else ir.DataType.FLOAT16
                    assert value.dtype == (ir.DataType.INT32 if name in fusion.integers else wide)


def test_what_runs_through_all_layers_is_the_residual(family):
    """It is the total of the norm before, and at first what was read from the table."""
    graph = engine_graph(family.path, "fp32", fused=True).graph
    nodes = [node for node in graph if node.op_type == "AddRMSNorm"]
    assert nodes[0].inputs[1].producer().op_type in ("Gather", "Mul")
    for before, node in itertools.pairwise(nodes):
        assert node.inputs[1] is before.outputs[1]


def angles_of(cosine):
    """What computes a cosine's angles in float32, itself included; older transformers multiply matrices."""
    found, waiting = {}, [cosine]
    while waiting:
        node = waiting.pop()
        if node.op_type != "Cast" and node.outputs[0].dtype == ir.DataType.FLOAT:
            found[node.name] = node
            waiting += [one for value in node.inputs if value is not None and (one := value.producer())]
    return found


def test_angles_and_cosines_are_held_to_float32(family, tmp_path):
    model = engine_graph(family.path, "fp16")
    save_for_engine(model, tmp_path / "bare.onnx")
    held = wide_nodes(tmp_path / "bare.onnx")
    chains = [angles_of(node) for node in model.graph if node.op_type in ("Cos", "Sin")]
    assert chains
    for chain in chains:
        assert {*chain} <= held
        assert {node.op_type for node in chain.values()} & {"Mul", "MatMul"}


def test_no_angle_is_left_to_tensorrt_once_fused(family, tmp_path):
    save_for_engine(engine_graph(family.path, "fp16", fused=True), tmp_path / "bare.onnx")
    assert not wide_nodes(tmp_path / "bare.onnx")


def test_the_parser_gets_bare_nodes(family, tmp_path):
    save_for_engine(engine_graph(family.path, "fp32", fused=True), tmp_path / "bare.onnx")
    bare = onnx.load(str(tmp_path / "bare.onnx"), load_external_data=False)
    assert not bare.functions
    mine = [node for node in bare.graph.node if node.op_type in FUSIONS]
    assert len(mine) == sum(COUNTS[family.name])
    for node in mine:
        assert {one.name for one in node.attribute} == {*FUSIONS[node.op_type].fields, *OWN_FIELDS}
        assert not node.overload


def kinds_after(text):
    """Kinds of nodes of a graph, written as text, after fusing."""
    model = ir.serde.deserialize_model(
        onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 23, "lineahead": 1]> {text}')
    )
    merge_products(model.graph)
    fuse(model)
    simplify(model)
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("t = Add (x, r) y = RMSNormalization <axis = -1> (t, w)", ["AddRMSNorm"]),
        ("t = Add (x, w) y = RMSNormalization <axis = -1> (t, w)", ["Add", "RMSNorm"]),
        ("t = Add (x, c) y = RMSNormalization <axis = -1> (t, w)", ["Add", "RMSNorm"]),
        ("y = RMSNormalization <axis = 1> (x, w)", ["RMSNormalization"]),
        ("v = Identity (x) y = RMSNormalization <axis = -1> (x, v)", ["Identity", "RMSNormalization"]),
    ],
    ids=["residual", "bias", "broadcast", "axis", "computed weight"],
)
def test_norms(text, kinds):
    ports = "float[B, T, 4] x, float[B, T, 4] r, float[B, 1, 4] c"
    assert (
        kinds_after(f"g ({ports}) => (y) <float[4] w = {{1, 2, 3, 4}}, float[B, T, 4] t> {{ {text} }}")
        == kinds
    )


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("s = Sigmoid (a) g = Mul (a, s) y = Mul (g, b)", "GatedUnit"),
        ("s = Sigmoid (a) g = Mul (s, a) y = Mul (b, g)", "GatedUnit"),
        ('g = Gelu <approximate = "tanh"> (a) y = Mul (g, b)', "GatedUnit"),
        ("g = Gelu (a) y = Mul (g, b)", "GatedUnit"),
        ("s = Sigmoid (b) g = Mul (b, s) y = Mul (g, a)", "Mul"),
        ("s = Sigmoid (b) g = Mul (a, s) y = Mul (g, b)", "Mul"),
        ("g = Relu (a) y = Mul (g, b)", "Mul"),
    ],
    ids=["silu", "the other way", "gelu_tanh", "gelu", "second half", "of two", "relu"],
)
def test_gated_units(text, last):
    values = "float[B, T, 3] a, float[B, T, 3] b"
    graph = (
        f"g (float[B, T, 6] x) => (y) <{values}> {{ a, b = Split <axis = 2, num_outputs = 2> (x) {text} }}"
    )
    assert kinds_after(graph)[-1] == last


HEADS = {"q": 4, "k": 2, "v": 2}
SPLIT = "a, b, c = Split <axis = -1> (x, widths)"
ROTATED = "r = RotaryEmbedding (tq, cos, sin) s = RotaryEmbedding (tk, cos, sin)"


WIDTHS = {"a": 32, "b": 16, "c": 16, "d": 32, "e": 16, "f": 16}
CONSTANTS = """int64[3] widths = {32, 16, 16}, int64[4] shape = {0, 0, -1, 8}, int64[1] p0 = {0},
    int64[1] p32 = {32}, int64[1] p48 = {48}, int64[1] p64 = {64}, int64[1] last = {2}"""


def after_heads(parts=SPLIT, *, flat=("a", "b", "c"), rotated=ROTATED, ports="r, s, tv", more=""):
    """Kinds of nodes that are left of the way from a product to an attention's ports."""
    values = [f"float[B, {n}, T, 8] t{port}, float[B, T, {n}, 8] h{port}" for port, n in HEADS.items()]
    values += [f"float[B, T, {width}] {name}" for name, width in WIDTHS.items()]
    values += [f"float[{n}] {name} = {{{', '.join('3' * n)}}}" for name, n in (("bq", 32), ("bk", 16))]
    heads = " ".join(
        f"h{port} = Reshape ({name}, shape) t{port} = Transpose <perm = [0, 2, 1, 3]> (h{port})"
        for port, name in zip(HEADS, flat, strict=True)
    )
    body = f"{parts} {heads} {rotated} y = lineahead.AugmentedAttention ({ports}) {more}"
    angles = ", ".join(f"float[B, T, 4] {name}" for name in ("cos", "sin", "other"))
    return kinds_after(
        f"g (float[B, T, 64] x, {angles}) => (y) <{', '.join([*values, CONSTANTS])}> {{ {body} }}"
    )


BIASES = "d = Add (a, bq) e = Add (bk, b)"
SLICES = "a = Slice (x, p0, p32, last) b = Slice (x, p32, p48, last) c = Slice (x, p48, p64, last)"


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        ({}, ["RotaryHeads"]),
        ({"parts": f"{SPLIT} {BIASES} f = Add (c, bk)", "flat": "def"}, ["Add", "RotaryHeads"]),
        ({"parts": SLICES}, ["RotaryHeads"]),
    ],
    ids=["split", "biases", "slices"],
)
def test_rotary_heads(change, kinds):
    assert after_heads(**change) == [*kinds, "AugmentedAttention"]


@pytest.mark.parametrize(
    "change",
    [
        {"parts": f"{SPLIT} {BIASES}", "flat": "dec"},
        {"parts": SLICES.replace("p48, p64", "p32, p48")},
        {"flat": "acb"},
        {"rotated": ROTATED.replace("(tk, cos, sin)", "(tk, other, sin)")},
        {"rotated": ROTATED.replace("RotaryEmbedding (tk", "RotaryEmbedding <interleaved = 1> (tk")},
        {"rotated": ROTATED.replace("RotaryEmbedding (tk", "RotaryEmbedding <rotary_embedding_dim = 4> (tk")},
        {"rotated": "r = RotaryEmbedding (tq, cos, sin) s = Identity (tk)"},
        {"ports": "r, s, s"},
        {"more": "z = Identity (r)"},
    ],
    ids=[
        "bias of two", "overlapping slices", "order", "other angles", "interleaved", "partial", "not rotated",
        "value rotated", "read elsewhere",
    ],
)  # fmt: skip
def test_other_ways_to_heads_are_left_alone(change):
    assert "RotaryHeads" not in after_heads(**change)
