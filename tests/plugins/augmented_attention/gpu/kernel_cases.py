"""Random calls of the operator at a given context length, and what they should give."""

import copy
from dataclasses import dataclass

import numpy as np
import torch

from lineahead.plugins.augmented_attention import feature_maps
from lineahead.plugins.augmented_attention.masks import held_positions
from lineahead.plugins.augmented_attention.methods import PRESETS, preset
from lineahead.plugins.augmented_attention.schema import (
    INPUTS,
    OUTPUTS,
    AttentionSettings,
    LayerShape,
    state_shapes,
)
from lineahead.plugins.augmented_attention.step import step, unit

HEDGEHOG = {"feature_map": "hedgehog", "normalizer": "denominator", "qk_norm": False}
SETTINGS = {
    "augmented": preset("augmented"),
    "softmax-hedgehog": preset("softmax-hedgehog"),
    "grouped-softmax": AttentionSettings(local="softmax", conv_taps=4, window=16, sinks=1, **HEDGEHOG),
    "sliding-relu2": AttentionSettings(pattern="sliding", window=24, conv_taps=64, sinks=4),
    "no-conv-sliding": AttentionSettings(
        local="softmax", pattern="sliding", conv_taps=0, feature_dim=16, **HEDGEHOG
    ),
    "global-only": AttentionSettings(local="none", pattern="none", conv_taps=3),
    "global-denominator": AttentionSettings(local="none", pattern="none", conv_taps=0, **HEDGEHOG),
    "local-only": AttentionSettings(feature_map="none", window=16, conv_taps=5),
    "softmax-local": AttentionSettings(
        local="softmax",
        pattern="sliding",
        feature_map="none",
        normalizer="denominator",
        qk_norm=False,
        sinks=4,
    ),
    "many-sinks": AttentionSettings(pattern="sliding", window=3, conv_taps=2, sinks=7),
    "group-1": AttentionSettings(window=1, conv_taps=1),
    "relu2-denominator": AttentionSettings(
        normalizer="denominator", feature_map="hedgehog", window=8, conv_taps=3
    ),
}
SETTINGS |= {name: settings for name, settings in PRESETS.items() if settings.causal and name not in SETTINGS}
TOLERANCE = {torch.float32: 3e-5, torch.float16: 5e-3, torch.bfloat16: 1.6e-2}
LAST_BIT = {torch.float32: 2.0**-22, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


@dataclass(frozen=True, kw_only=True)
class Size:
    """Sizes of one call; `length` are the tokens committed before, per sequence in turn, `accepts` is A."""

    batch: int = 2
    heads: int = 4
    kv_heads: int = 2
    dim: int = 32
    value_dim: int = 32
    nodes: int = 5
    pending: int = 6
    accepts: int = 8
    length: tuple[int, ...] = (70,)


def random_ancestors(rng, batch, nodes, chain):
    """``[B, T, T]`` bool, rows in topological order unless a chain."""
    trees = np.zeros((batch, nodes, nodes), bool)
    for tree in trees:
        order = np.arange(nodes) if chain else rng.permutation(nodes)
        for place, i in enumerate(order):
            parent = place - 1 if chain else int(rng.integers(max(-1, place - 3), place)) if place else -1
            if parent >= 0:
                tree[i] = tree[order[parent]]
            tree[i, i] = True
    return torch.from_numpy(trees)


def make_case(
    settings: AttentionSettings, size: Size, *, dtype, device="cpu", seed=0, chain=False, index=torch.int64
):
    """Operands by INPUTS; rows that nothing may read are not-a-number."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    batch, wide = size.batch, size.value_dim
    columns = settings.feature_dim or size.dim
    map_ = feature_maps.get(settings.feature_map) if settings.has_state else None
    features = map_.width(size.dim, columns) if map_ else 0
    learned = map_ is not None and map_.initial is not None
    shape = LayerShape(heads=size.heads, kv_heads=size.kv_heads, head_dim=size.dim, value_dim=wide)
    shapes = state_shapes(settings, shape, features, batch)

    def normal(*sizes):
        return torch.randn(*sizes, generator=generator)

    def positive(*sizes):
        return torch.rand(*sizes, generator=generator) + 0.25

    length = torch.tensor([size.length[b % len(size.length)] for b in range(batch)])
    accepts = min(size.pending, size.accepts)
    count = torch.tensor([int(rng.integers(0, accepts + 1)) if b % 3 else accepts for b in range(batch)])
    rows = (
        np.stack([rng.permutation(size.pending)[:accepts] for _ in range(batch)])
        if accepts
        else np.zeros((batch, 0))
    )
    weigh = positive if settings.normalizer == "denominator" else normal
    window_key, window_value = (normal(*shapes[name]) for name in ("window_key", "window_value"))
    empty = held_positions(settings, length) < 0
    pending_key, pending_value = (
        normal(batch, size.kv_heads, size.pending, size.dim),
        normal(batch, size.kv_heads, size.pending, wide),
    )
    unused = torch.ones(batch, size.pending, dtype=torch.bool)
    for b in range(batch):
        unused[b, rows[b, : count[b]].astype(int)] = False
    if settings.qk_norm:
        window_key, pending_key = unit(window_key, settings.eps), unit(pending_key, settings.eps)
    for tensor, mask in (
        (window_key, empty),
        (window_value, empty),
        (pending_key, unused),
        (pending_value, unused),
    ):
        tensor.masked_fill_(mask[:, None, :, None], torch.nan)
    one = torch.ones(1)
    heads, shared = size.heads, size.kv_heads
    ports = {
        "query": normal(batch, heads, size.nodes, size.dim),
        "key": normal(batch, shared, size.nodes, size.dim),
        "value": normal(batch, shared, size.nodes, wide),
        "ancestors": random_ancestors(rng, batch, size.nodes, chain),
        "length": length.to(index),
        "accept_index": torch.from_numpy(rows).to(index),
        "accept_count": count.to(index),
        "state": (normal if settings.normalizer == "none" else positive)(*shapes["state"])
        if "state" in shapes
        else one,
        "norm": 8 * positive(*shapes["norm"]) if "norm" in shapes else one,
        "window_key": window_key,
        "window_value": window_value,
        "pending_key": pending_key,
        "pending_value": pending_value,
        "alpha": weigh(heads),
        "local_scale": weigh(heads),
        "conv": normal(heads, settings.conv_taps) if settings.conv_taps else one,
        "query_map": normal(heads, size.dim, columns) * size.dim**-0.5 if learned else one,
        "key_map": normal(shared, size.dim, columns) * size.dim**-0.5 if learned else one,
    }
    kept = ("ancestors", "length", "accept_index", "accept_count", "state", "norm")
    return {name: (x if name in kept else x.to(dtype)).contiguous().to(device) for name, x in ports.items()}


def expected(ports, settings: AttentionSettings, scale: float):
    """step.step in float64, with the rounding of normalised queries and keys that the operator prescribes."""
    exact = {name: x.double().nan_to_num(0) if x.is_floating_point() else x for name, x in ports.items()}
    exact |= {name: ports[name].long() for name in ("length", "accept_index", "accept_count")}
    if settings.qk_norm:
        for name in ("query", "key"):
            exact[name] = unit(ports[name].float(), settings.eps).to(ports[name].dtype).double()
    plain = copy.copy(settings)
    object.__setattr__(plain, "qk_norm", False)  # done above; the check would refuse cosines without it
    results = step(*(exact[name] for name in INPUTS), settings=plain, scale=scale)
    return dict(zip(OUTPUTS, results, strict=True))


def errors(got, ports, settings, scale):
    """Largest error of each output relative to its largest value (at least 1); not-a-number is infinite."""
    want = expected(ports, settings, scale)
    total = ports["length"].long() + ports["accept_count"].long()
    empty = held_positions(settings, total)[:, None, :, None] < 0
    found = {}
    for name in OUTPUTS:
        difference = (got[name].double() - want[name]).abs()
        if name.startswith("window"):
            difference = difference.masked_fill(empty, 0)
        worst = difference.max().item()
        found[name] = (worst if worst == worst else float("inf")) / max(1.0, want[name].abs().max().item())
    return found


def check(
    kernels,
    settings,
    size,
    *,
    dtype,
    device="cpu",
    seed=0,
    chain=False,
    index=torch.int64,
    in_place=False,
    value_slice=0,
    variant=0,
):
    """Largest output error over its tolerance; the state must be right to rounding."""
    scale = 1.0 if settings.qk_norm else size.dim**-0.5
    ports = make_case(settings, size, dtype=dtype, device=device, seed=seed, chain=chain, index=index)
    before = {name: x.clone() for name, x in ports.items()}
    got = kernels.step(
        ports, settings, scale, in_place=in_place, value_slice=value_slice, variant=variant, chain=chain
    )
    found = errors(got, before, settings, scale)
    limits = {**dict.fromkeys(found, 0.0), "output": TOLERANCE[dtype], "state": 2e-6, "norm": 2e-6}
    if settings.qk_norm:
        limits["pending_key"] = LAST_BIT[dtype]
    for name, error in found.items():
        case = f"{settings} {size} {dtype} seed={seed}"
        assert error <= limits[name], f"{name}: error {error:.2e} over {limits[name]:.0e} with {case}"
    return found["output"]
