"""Settings to try, random operands, random trees, and a driver that calls the step form as a runtime does."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from operator_oracle import define

from lineahead.plugins.augmented_attention.methods import PRESETS

HEADS, KV_HEADS, DIM, VALUE_DIM = 4, 2, 6, 5
SCALE = 0.4
EXACT = 1e-9

VARIANTS: dict[str, dict[str, Any]] = {
    "augmented": {},
    "softmax-hedgehog": {
        "local": "softmax", "pattern": "sliding", "feature_map": "hedgehog", "normalizer": "denominator",
        "qk_norm": False, "sinks": 4,
    },
    "sliding-relu2": {"pattern": "sliding", "window": 8, "conv_taps": 4},
    "grouped-softmax": {
        "local": "softmax", "feature_map": "hedgehog", "normalizer": "denominator", "qk_norm": False,
        "window": 8, "conv_taps": 4,
    },
    "sliding-softmax": {
        "local": "softmax", "pattern": "sliding", "feature_map": "hedgehog", "normalizer": "denominator",
        "qk_norm": False, "window": 7, "conv_taps": 5, "feature_dim": 3,
    },
    "grouped-relu2": {"window": 8, "conv_taps": 5},
    "relu2-denominator": {
        "normalizer": "denominator", "feature_map": "hedgehog", "window": 8, "conv_taps": 3,
    },
    "global-only": {"local": "none", "pattern": "none", "window": 8, "conv_taps": 3},
    "global-denominator": {
        "local": "none", "pattern": "none", "window": 8, "conv_taps": 3, "feature_map": "hedgehog",
        "normalizer": "denominator", "qk_norm": False,
    },
    "local-only": {"feature_map": "none", "window": 8, "conv_taps": 3},
    "softmax-local-only": {
        "local": "softmax", "pattern": "sliding", "feature_map": "none", "normalizer": "denominator",
        "qk_norm": False, "window": 6, "conv_taps": 0,
    },
    "no-conv": {"window": 8, "conv_taps": 0},
    "one-tap": {"window": 8, "conv_taps": 1},
    "long-conv": {"window": 4, "conv_taps": 19},
    "grouped-sinks": {"window": 8, "conv_taps": 5, "sinks": 3},
    "sliding-sinks": {
        "local": "softmax", "pattern": "sliding", "feature_map": "hedgehog", "normalizer": "denominator",
        "qk_norm": False, "window": 5, "conv_taps": 9, "sinks": 2,
    },
    "many-sinks": {"pattern": "sliding", "window": 3, "conv_taps": 2, "sinks": 7},
    "grouped-many-sinks": {"window": 4, "conv_taps": 7, "sinks": 6},
    "window-1": {"pattern": "sliding", "window": 1, "conv_taps": 2},
    "group-1": {"window": 1, "conv_taps": 2},
    "scaled-hedgehog": {  # only the global term divided, beside a kernel of its own
        "feature_map": "hedgehog", "normalizer": "denominator", "normalizes": "global", "qk_norm": False,
        "local_norm": True, "pattern": "sliding", "window": 4, "conv_taps": 3, "sinks": 2,
    },
    "softmax-beside-identity": {
        "local": "softmax", "normalizer": "denominator", "normalizes": "local", "qk_norm": False, "window": 5,
        "conv_taps": 3,
    },
    "rms-of-all": {"normalizer": "rms", "pattern": "sliding", "window": 5, "conv_taps": 3, "sinks": 1},
}  # fmt: skip
PRESET_NAMES = ("augmented", "softmax-hedgehog")
VARIANTS |= {
    name: settings.as_dict() | {"window": 8, "conv_taps": min(settings.conv_taps, 5)}
    for name, settings in PRESETS.items()
    if settings.causal and settings not in (PRESETS["augmented"], PRESETS["softmax-hedgehog"])
}
UNCOMPILED: dict[str, dict[str, Any]] = {  # what no compiled kernel has
    "capped-softmax": {
        "local": "softmax_cap50", "pattern": "sliding", "feature_map": "hedgehog",
        "normalizer": "denominator", "qk_norm": False, "window": 6, "conv_taps": 3,
    },
}  # fmt: skip
SMALL = tuple(name for name in VARIANTS if name not in PRESET_NAMES)


@dataclass(frozen=True, kw_only=True)
class Forms:
    """The forms under test: modules (or damaged copies of them)."""

    schema: Any
    step: Any
    parallel: Any
    reference: Any
    feature_maps: Any
    module: Any
    bidirectional: Any
    cross: Any
    linformer: Any
    roles: Any

    def settings(self, name: str) -> Any:
        return self.schema.AttentionSettings(**(VARIANTS | UNCOMPILED)[name])


class Case:
    """Random operands and `tokens` random query, key and value rows."""

    def __init__(
        self, forms, settings, *, tokens, batch=2, dtype=torch.float64, seed=0, kv_heads=KV_HEADS, scale=SCALE
    ):
        rng = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=rng, dtype=torch.float64).to(dtype)

        self.forms, self.settings, self.batch, self.dtype, self.kv_heads = (
            forms,
            settings,
            batch,
            dtype,
            kv_heads,
        )
        self.scale = scale
        self.scale = scale
        self.query, self.key = normal(batch, HEADS, tokens, DIM), normal(batch, kv_heads, tokens, DIM)
        self.value = normal(batch, kv_heads, tokens, VALUE_DIM)
        columns = settings.feature_dim or DIM
        positive = settings.normalizer == "denominator"
        self.parameters = (
            normal(HEADS).abs() + 0.1 if positive else normal(HEADS),
            normal(HEADS).abs() + 0.1 if positive else normal(HEADS),
            normal(HEADS, max(settings.conv_taps, 1)),
            normal(HEADS, DIM, columns),
            normal(kv_heads, DIM, columns),
        )
        self.shape = forms.schema.LayerShape(
            heads=HEADS, kv_heads=kv_heads, head_dim=DIM, value_dim=VALUE_DIM
        )

    def rows(self, start, stop):
        return tuple(x[:, :, start:stop] for x in (self.query, self.key, self.value))

    def arrays(self):
        return [x.double().numpy() for x in (self.query, self.key, self.value)]

    def define(self, depth=None, ancestors=None):
        parameters = [x.double().numpy() for x in self.parameters]
        return torch.from_numpy(
            define(*self.arrays(), parameters, self.settings, self.scale, depth, ancestors)
        )

    def refer(self, dtype=torch.float64):
        return self.forms.reference.augmented_attention_ref(
            self.query,
            self.key,
            self.value,
            *self.parameters,
            settings=self.settings,
            scale=self.scale,
            dtype=dtype,
        )

    def parallel(self, count=None):
        return self.forms.parallel.parallel(
            *self.rows(0, count), *self.parameters, settings=self.settings, scale=self.scale
        )

    def widths(self):
        columns = self.settings.feature_dim or DIM
        width = (
            self.forms.feature_maps.get(self.settings.feature_map).width if self.settings.has_state else None
        )
        return width(DIM, columns) if width else 0

    def state(self, dtype=None):
        """A fresh state in STATE order, as float32 (or the case's float64)."""
        shapes = self.forms.schema.state_shapes(self.settings, self.shape, self.widths(), self.batch)
        sums = torch.promote_types(self.dtype, torch.float32)
        return [
            torch.zeros(shapes.get(name, (1,)), dtype=sums if name in ("state", "norm") else self.dtype)
            for name in self.forms.schema.STATE
        ]


class Decoder:
    """Calls the step form the way a runtime does: it holds the state, the length and the pending rows."""

    def __init__(self, case):
        self.case, self.state = case, case.state()
        self.length = torch.zeros(case.batch, dtype=torch.int64)
        self.pending = [x[:, :, :0] for x in (case.key, case.value)]

    def step(self, query, key, value, ancestors=None, index=None, count=None):
        """One call; a chain without `ancestors`, everything pending accepted without `index`."""
        nodes, batch = query.shape[2], self.case.batch
        if ancestors is None:
            ancestors = torch.ones(nodes, nodes).tril().bool().repeat(batch, 1, 1)
        if index is None:
            index = torch.arange(self.pending[0].shape[2]).repeat(batch, 1)
            count = torch.full((batch,), index.shape[1])
        output, *state, pending_key = self.case.forms.step.step(
            query, key, value, ancestors, self.length, index, count, *self.state, *self.pending,
            *self.case.parameters, settings=self.case.settings, scale=self.case.scale,
        )  # fmt: skip
        self.state, self.length, self.pending = state, self.length + count, [pending_key, value]
        return output

    def chain(self, sizes):
        """Outputs of the case's first ``sum(sizes)`` tokens, `sizes` at a time."""
        outputs, start = [], 0
        for size in sizes:
            outputs.append(self.step(*self.case.rows(start, start + size)))
            start += size
        return torch.cat(outputs, 2)

    def settle(self, index=None, count=None):
        """Commit what is pending by a call whose own row is never accepted."""
        self.step(*self.case.rows(0, 1), index=index, count=count)
        return self

    def fork(self):
        twin = Decoder(self.case)
        twin.state, twin.length, twin.pending = list(self.state), self.length, list(self.pending)
        return twin


def random_tree(rng, nodes, *, roots=1, shuffle=True):
    """(parents, ancestors [T, T] bool, depth [T]); rows in any order when `shuffle`."""
    parents = [-1 if i < roots else int(rng.integers(max(0, i - 4), i)) for i in range(nodes)]
    ancestors = np.eye(nodes, dtype=bool)
    for i, parent in enumerate(parents):
        if parent >= 0:
            ancestors[i] |= ancestors[parent]
    if shuffle:
        order = rng.permutation(nodes)
        place = np.argsort(order)
        ancestors = ancestors[order][:, order]
        parents = [-1 if parents[i] < 0 else int(place[parents[i]]) for i in order]
    return parents, ancestors, ancestors.sum(1) - 1


def path_to(parents, node):
    path = []
    while node >= 0:
        path.append(node)
        node = parents[node]
    return path[::-1]


def ragged(case, counts, width):
    """A decoder, and the acceptance by which row b commits its first ``counts[b]`` tokens of one prefill."""
    decoder = Decoder(case)
    decoder.step(*case.rows(0, width))
    return decoder, torch.arange(width).repeat(case.batch, 1), torch.tensor(counts)


def tree_definition(case, counts, width, trees):
    """Definitional outputs of tree rows ``width ...``; row b's context is its first ``counts[b]`` tokens."""
    nodes = trees[0][1].shape[0]
    ancestors = np.zeros((case.batch, width + nodes, width + nodes), bool)
    depth = np.zeros((case.batch, width + nodes), int)
    for b, (_, own, own_depth) in enumerate(trees):
        ancestors[b, :width, :width] = np.tril(np.ones((width, width), bool))
        ancestors[b, width:, : counts[b]] = True
        ancestors[b, width:, width:] = own
        depth[b] = np.concatenate([np.arange(width), counts[b] + own_depth])
    return case.define(depth, ancestors)[:, :, width:]


def close(got, want, tolerance=EXACT, what="output"):
    """Assert agreement to `tolerance`, relative to the largest value wanted (at least 1)."""
    assert got.shape == want.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(want.shape)}"
    error = (got.double() - want.double()).abs().max().item() if want.numel() else 0.0
    size = max(1.0, want.double().abs().max().item()) if want.numel() else 1.0
    assert error <= tolerance * size, f"{what}: error {error:.3e} over {tolerance:.0e} of {size:.3g}"


def relative(got, want):
    """RMS of the difference over RMS of what was expected."""
    got, want = got.double(), want.double()
    return ((got - want).square().mean().sqrt() / want.square().mean().sqrt().clamp_min(1e-30)).item()
