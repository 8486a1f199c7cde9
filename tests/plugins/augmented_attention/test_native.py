"""The native CPU kernel in ONNX Runtime against the step form in float64, through a model of one node."""

import threading
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
import torch
from native_model import make_model, make_session, unknown
from operator_cases import VARIANTS as ALL_VARIANTS
from operator_cases import random_tree

from lineahead.plugins.augmented_attention import feature_maps, native, schema, step

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

TOLERANCE = 1e-5
VARIANTS = [name for name, v in ALL_VARIANTS.items() if not unknown(schema.AttentionSettings(**v))]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 6
    value_dim: int = 5
    batch: int = 1


class Twin:
    """The same text in the native kernel (float32) and in the step form (float64), with their own states."""

    def __init__(self, library, settings, sizes, *, in_place=False, seed=0, scale=0.4, threads=1):
        self.settings, self.sizes, self.in_place, self.scale = settings, sizes, in_place, scale
        self.session = make_session(library, settings, scale, threads)
        self.rng = np.random.default_rng(seed)
        self.positive = settings.normalizer == "denominator" and settings.feature_map == "identity"
        columns = settings.feature_dim or sizes.head_dim
        phi = feature_maps.get(settings.feature_map) if settings.has_state else None
        features = phi.width(sizes.head_dim, columns) if phi else 0
        layer = schema.LayerShape(
            heads=sizes.heads, kv_heads=sizes.kv_heads, head_dim=sizes.head_dim, value_dim=sizes.value_dim
        )
        shapes = schema.state_shapes(settings, layer, features, sizes.batch)
        one = np.ones(1, np.float32)
        self.state = {n: np.zeros(shapes[n], np.float32) if n in shapes else one.copy() for n in schema.STATE}
        learned = phi is not None and phi.initial is not None
        self.parameters = {
            "alpha": np.abs(self.normal(sizes.heads)) + 0.1,
            "local_scale": np.abs(self.normal(sizes.heads)) + 0.1,
            "conv": self.normal(sizes.heads, settings.conv_taps) if settings.conv_taps else one,
            "query_map": self.normal(sizes.heads, sizes.head_dim, columns) if learned else one,
            "key_map": self.normal(sizes.kv_heads, sizes.head_dim, columns) if learned else one,
        }
        self.exact = {n: torch.from_numpy(x).double() for n, x in self.state.items()}
        self.length = np.zeros(sizes.batch, np.int64)
        empty = np.zeros((sizes.batch, sizes.kv_heads, 0, sizes.head_dim), np.float32)
        self.pending = [empty, empty[..., :1].repeat(sizes.value_dim, 3)]
        self.exact_pending = [torch.from_numpy(x).double() for x in self.pending]

    def normal(self, *shape):
        return self.rng.standard_normal(shape).astype(np.float32)

    def call(self, ancestors, index, count):
        """One call of both; asserts that outputs and states agree."""
        b, nodes, s = self.sizes.batch, ancestors.shape[1], self.sizes
        data = [
            self.normal(b, s.heads, nodes, s.head_dim),
            self.normal(b, s.kv_heads, nodes, s.head_dim),
            self.normal(b, s.kv_heads, nodes, s.value_dim),
        ]
        if self.positive:
            data[:2] = [np.abs(x) for x in data[:2]]
        call = [ancestors, self.length, index, count]
        arrays = [*data, *call, *self.state.values(), *self.pending, *self.parameters.values()]
        got = self.run(dict(zip(schema.INPUTS, arrays, strict=True)))
        want = step.step(
            *(torch.from_numpy(x).double() for x in data), *(torch.from_numpy(x) for x in call),
            *self.exact.values(), *self.exact_pending,
            *(torch.from_numpy(x).double() for x in self.parameters.values()),
            settings=self.settings, scale=self.scale,
        )  # fmt: skip
        for name, a, b in zip(schema.OUTPUTS, got, want, strict=True):
            close(a, b.numpy(), name)
        self.state = dict(zip(schema.STATE, got[1:5], strict=True))
        self.exact = dict(zip(schema.STATE, want[1:5], strict=True))
        self.length, self.pending = self.length + count, [got[5], data[2]]
        self.exact_pending = [want[5], torch.from_numpy(data[2]).double()]

    def run(self, feeds):
        """Through IOBinding; outputs start as NaN, except where they are the very buffers of the inputs."""
        binding = self.session.io_binding()
        values = {n: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(x)) for n, x in feeds.items()}
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        q, v = feeds["query"], feeds["value"]
        shapes = [(*q.shape[:3], v.shape[3]), *(feeds[n].shape for n in schema.STATE), feeds["key"].shape]
        results = []
        for name, shape in zip(schema.OUTPUTS, shapes, strict=True):
            fresh = ort.OrtValue.ortvalue_from_numpy(np.full(shape, np.nan, np.float32))
            results.append(values[name] if self.in_place and name in schema.STATE else fresh)
            binding.bind_ortvalue_output(f"{name}_out", results[-1])
        before = {n: x.copy() for n, x in feeds.items()}
        self.session.run_with_iobinding(binding)
        for name, x in before.items():
            if not (self.in_place and name in schema.STATE):
                np.testing.assert_array_equal(values[name].numpy(), x, err_msg=name)
        return [x.numpy().copy() for x in results]

    def chain(self, nodes, accept=None):
        """A chain; `accept` rows of the pending ones per text, all by default."""
        b, waiting = self.sizes.batch, self.pending[0].shape[2]
        index = np.tile(np.arange(waiting, dtype=np.int64), (b, 1))
        count = np.full(b, waiting, np.int64) if accept is None else np.asarray(accept, np.int64)
        ancestors = np.tile(np.tril(np.ones((nodes, nodes), bool)), (b, 1, 1))
        self.call(ancestors, index, count)

    def trees(self, nodes, rounds, longest=None):
        """Random trees, accepting a random path (perhaps nothing) of the previous ones."""
        b, paths = self.sizes.batch, None
        for _ in range(rounds):
            trees = [random_tree(self.rng, nodes, roots=int(self.rng.integers(1, 3))) for _ in range(b)]
            ancestors = np.stack([tree[1] for tree in trees])
            if paths is None:
                self.chain_into(ancestors)
            else:
                count = np.array([int(self.rng.integers(0, len(p) + 1)) for p in paths])
                index = np.zeros((b, max(1, count.max())), np.int64)
                for i, path in enumerate(paths):
                    index[i, : count[i]] = path[: count[i]]
                self.call(ancestors, index, count)
            paths = [random_path(self.rng, tree) for tree in trees]

    def chain_into(self, ancestors):
        """A tree after a chain of which everything is accepted."""
        waiting = self.pending[0].shape[2]
        index = np.tile(np.arange(waiting, dtype=np.int64), (self.sizes.batch, 1))
        self.call(ancestors, index, np.full(self.sizes.batch, waiting))


def random_path(rng, tree):
    parents = tree[0]
    node, path = int(rng.integers(len(parents))), []
    while node >= 0:
        path.append(node)
        node = parents[node]
    return np.array(path[::-1], np.int64)


def close(got, want, what):
    assert got.shape == want.shape, what
    assert np.isfinite(got).all(), f"{what} is not finite"
    if want.size:
        error, size = np.abs(got - want).max(), max(np.abs(want).max(), 1e-3)
        assert error <= TOLERANCE * size, f"{what}: relative error {error / size:.2e}"


def settings_of(name, **changes):
    return schema.AttentionSettings(**{**ALL_VARIANTS[name], **changes})


ALL = [
    (local, pattern, phi, normalizer, qk_norm, taps, sinks)
    for (local, pattern), phi, normalizer, qk_norm, taps, sinks in product(
        [("none", "none"), ("none", "grouped"), *product(("relu2", "softmax"), ("grouped", "sliding"))],
        ("none", "identity", "hedgehog"),
        ("none", "denominator"),
        (False, True),
        (0, 3),
        (0, 2),
    )
    if not (local == "none" and (phi == "none" or sinks))
    and not (local == "softmax" and normalizer == "none")
]


@pytest.mark.parametrize("combination", ALL, ids=lambda c: "-".join(map(str, c)))
def test_every_combination(combination, library):
    names = ("local", "pattern", "feature_map", "normalizer", "qk_norm", "conv_taps", "sinks")
    settings = schema.AttentionSettings(**dict(zip(names, combination, strict=True)), window=7)
    for in_place in (False, True):
        twin = Twin(library, settings, Sizes(batch=2), in_place=in_place)
        for nodes in (1, 2, 5, 17, 1, 1):
            twin.chain(nodes)
        twin.trees(9, 3)
        twin.chain(30)
        twin.trees(11, 2)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("nodes", [1, 2, 5, 17, 64, 70, 256])
def test_chains(name, nodes, library):
    twin = Twin(library, settings_of(name), Sizes(head_dim=16, value_dim=16))
    for _ in range(3):
        twin.chain(nodes)
    twin.trees(5, 2)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("in_place", [False, True])
def test_ragged_trees_at_every_boundary(name, in_place, library):
    """A batch of three that drifts apart over two windows, accepting nothing now and then."""
    settings = settings_of(name)
    for nodes, seed in ((4, 1), (21, 2)):
        twin = Twin(library, settings, Sizes(batch=3), in_place=in_place, seed=seed, threads=2)
        twin.chain(settings.window + 3)
        twin.chain(6, accept=[settings.window + 3, 0, 2])
        twin.trees(nodes, 20 if settings.window < 20 else 40)


@pytest.mark.parametrize("name", ["augmented", "softmax-hedgehog"])
@pytest.mark.parametrize(
    "sizes",
    [
        Sizes(heads=1, kv_heads=1, head_dim=1, value_dim=1),
        Sizes(heads=9, kv_heads=3, head_dim=64, value_dim=64),
        Sizes(heads=6, kv_heads=6, head_dim=33, value_dim=65),
        Sizes(heads=8, kv_heads=1, head_dim=17, value_dim=80, batch=2),
    ],
    ids=str,
)
def test_head_layouts(name, sizes, library):
    twin = Twin(library, settings_of(name), sizes, threads=2)
    for nodes in (1, 1, 64, 3, 130, 1):
        twin.chain(nodes)
    twin.trees(7, 3)
    twin.trees(40, 2)


@pytest.mark.parametrize(("name", "steps"), [("augmented", 600), ("softmax-hedgehog", 2000)])
def test_many_steps(name, steps, library):
    twin = Twin(library, settings_of(name), Sizes(), in_place=True)
    for _ in range(steps):
        twin.chain(1)


def test_empty_rows_may_hold_anything(library):
    """A recycled state buffer: nothing that no token has written is read."""
    twin = Twin(library, settings_of("softmax-hedgehog"), Sizes(batch=2))
    for name in ("window_key", "window_value"):
        twin.state[name][:] = np.nan
    for nodes in (3, 20, 1):
        index = np.tile(np.arange(twin.pending[0].shape[2], dtype=np.int64), (2, 1))
        count = np.full(2, index.shape[1])
        ancestors = np.tile(np.tril(np.ones((nodes, nodes), bool)), (2, 1, 1))
        data = [twin.normal(2, h, nodes, d) for h, d in ((4, 6), (2, 6), (2, 5))]
        arrays = [*data, ancestors, twin.length, index, count, *twin.state.values(), *twin.pending]
        got = twin.run(dict(zip(schema.INPUTS, [*arrays, *twin.parameters.values()], strict=True)))
        assert np.isfinite(got[0]).all()
        twin.state = dict(zip(schema.STATE, got[1:5], strict=True))
        twin.length, twin.pending = twin.length + count, [got[5], data[2]]


def test_preferred_to_the_function_body(library):
    """A model that carries a function for the node, here one that answers nothing but zeros."""
    model = onnx.ModelProto.FromString(make_model(settings_of("augmented"), 0.4))
    zeros = onnx.helper.make_tensor("zeros", onnx.TensorProto.FLOAT, [1], [0.0])
    names = [f"{name}_out" for name in schema.OUTPUTS]
    body = [onnx.helper.make_node("Constant", [], [name], value=zeros) for name in names]
    opset = onnx.helper.make_opsetid("", 21)
    model.functions.append(
        onnx.helper.make_function(schema.DOMAIN, schema.OP_TYPE, schema.INPUTS, names, body, [opset])
    )
    twin = Twin(library, settings_of("augmented"), Sizes())
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(library))
    twin.session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    twin.chain(3)
    twin.chain(1)


def test_one_session_from_many_threads(library):
    """Calls do not share scratch memory."""
    settings = settings_of("softmax-hedgehog")
    twin = Twin(library, settings, Sizes(heads=8, kv_heads=4, head_dim=32, value_dim=32))
    twin.chain(70)
    chain = np.tril(np.ones((1, 70, 70), bool))
    index, count = np.arange(70)[None], np.array([70])
    data = [twin.normal(1, h, 70, 32) for h in (8, 4, 4)]
    arrays = [*data, chain, twin.length, index, count, *twin.state.values(), *twin.pending]
    feeds = dict(zip(schema.INPUTS, [*arrays, *twin.parameters.values()], strict=True))
    want = twin.session.run(None, feeds)
    wrong = []

    def work():
        for _ in range(20):
            got = twin.session.run(None, feeds)
            wrong.extend(n for n, a, b in zip(schema.OUTPUTS, got, want, strict=True) if (a != b).any())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("port", "value", "message"),
    [
        ("accept_index", np.array([[7]]), "accept_index 7 is no row"),
        ("accept_count", np.array([2]), "accept_count exceeds"),
        ("length", np.array([-1]), "length is negative"),
        ("window_key", np.zeros((1, 2, 3, 6), np.float32), "window_key has shape [1, 2, 3, 6], expected"),
        ("value", np.zeros((1, 2, 2, 5), np.float32), "value has shape"),
    ],
)
def test_bad_operands_are_refused(port, value, message, library):
    twin = Twin(library, settings_of("augmented"), Sizes())
    twin.chain(1)
    data = [twin.normal(1, h, 1, d) for h, d in ((4, 6), (2, 6), (2, 5))]
    call = [np.ones((1, 1, 1), bool), twin.length, np.zeros((1, 1), np.int64), np.array([1])]
    arrays = [*data, *call, *twin.state.values(), *twin.pending, *twin.parameters.values()]
    feeds = dict(zip(schema.INPUTS, arrays, strict=True)) | {port: value}
    with pytest.raises(Exception, match="lineahead AugmentedAttention") as caught:
        twin.session.run(None, feeds)
    assert message in str(caught.value)


def test_ports_are_those_of_the_schema(library):
    """The C++ enumeration and name table repeat schema.INPUTS in order."""
    source = (native.SOURCES / native.MAIN).read_text()
    table = source.split("kInputNames[kInputs] = {")[1].split("};")[0]
    assert tuple(table.replace('"', "").replace(",", " ").split()) == schema.INPUTS
