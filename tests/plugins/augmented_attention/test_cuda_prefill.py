"""The prefill kernels, compiled for the CPU as the others are (test_cuda_kernels.py)."""

import ctypes
import dataclasses

import pytest
import torch
from operator_kernel_cases import SETTINGS, Size, check, make_case

PREFILL = 3  # Variant of csrc/cuda/call.h
PRESETS = ("softmax-hedgehog", "augmented")
TYPES = (torch.float16, torch.bfloat16)
# nodes, pending, committed before, heads, sinks, taps
CALLS = (
    (130, 0, (0, 1), (2, 2), 4, 0),
    (65, 64, (62, 63), (4, 2), 0, 32),
    (128, 130, (64, 0), (2, 1), 8, 64),
    (1, 200, (31, 65), (2, 2), 3, 1),
    (64, 1, (127, 128), (3, 1), 1, 4),
    (17, 20, (0, 100), (2, 2), 4, 32),
)


def size_of(call, dim):
    nodes, pending, length, (heads, shared), *_ = call
    return Size(
        nodes=nodes, pending=pending, accepts=pending, length=length, heads=heads, kv_heads=shared,
        dim=dim, value_dim=dim,
    )  # fmt: skip


def settings_of(name, call):
    return dataclasses.replace(SETTINGS[name], sinks=call[4], conv_taps=call[5])


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("turn", range(len(CALLS)))
def test_a_long_chain_is_the_step_in_double_precision(name, turn, kernels, monkeypatch):
    """Accepted rows in any order, committed lengths around groups; threads in a random order."""
    monkeypatch.setenv("EMULATED_ORDER", str(turn + 1))
    call, side = CALLS[turn], PRESETS.index(name)
    options = {"dtype": TYPES[(turn + side) % 2], "in_place": (turn + side) % 3 != 0, "seed": turn}
    options |= {"chain": True, "index": (torch.int64, torch.int32)[turn % 2]}
    options["variant"] = PREFILL if call[0] <= 16 or turn % 2 else 0  # longer chains get them unasked
    check(kernels, settings_of(name, call), size_of(call, 64), **options)


@pytest.mark.parametrize("name", PRESETS)
def test_heads_of_128(name, kernels):
    size = Size(
        batch=1, nodes=70, pending=66, accepts=66, length=(100,), heads=1, kv_heads=1, dim=128, value_dim=128
    )
    for dtype in TYPES:
        check(kernels, SETTINGS[name], size, dtype=dtype, chain=True, variant=PREFILL, in_place=True)


@pytest.mark.parametrize("name", PRESETS)
def test_any_order_of_threads_gives_the_same_bits(name, kernels, monkeypatch):
    settings, size = SETTINGS[name], dataclasses.replace(size_of(CALLS[1], 64), batch=1)
    scale, found = 1.0 if settings.qk_norm else size.dim**-0.5, []
    for order in ("1", "2"):
        monkeypatch.setenv("EMULATED_ORDER", order)
        ports = make_case(settings, size, dtype=torch.float16, chain=True)
        found.append(kernels.step(ports, settings, scale, in_place=True, variant=PREFILL, chain=True))
    for port in ("output", "pending_key", "state", "norm"):
        assert torch.equal(found[0][port], found[1][port]), port


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("nodes", [1, 17])
@pytest.mark.parametrize("in_place", [False, True])
def test_a_tree_after_a_long_chain(name, nodes, in_place, kernels, monkeypatch):
    """More rows to commit than the streaming kernel takes: they are committed apart."""
    monkeypatch.setenv("EMULATED_ORDER", "3")
    size = Size(
        nodes=nodes, pending=200, accepts=200, length=(62, 0), heads=4, kv_heads=2, dim=64, value_dim=64
    )
    index = (torch.int64, torch.int32)[in_place]
    options = {"dtype": TYPES[nodes % 2], "seed": nodes, "in_place": in_place, "index": index}
    check(kernels, SETTINGS[name], size, variant=PREFILL, **options)


@pytest.mark.parametrize(
    ("change", "dim", "dtype"),
    [
        ({}, 64, torch.float32),
        ({}, 32, torch.float16),
        ({"window": 32}, 64, torch.float16),
        ({"conv_taps": 65}, 64, torch.float16),
        ({"sinks": 9}, 64, torch.float16),
        ({"pattern": "grouped"}, 64, torch.float16),
    ],
)
@pytest.mark.parametrize("chain", [False, True])
def test_other_calls_are_refused(change, dim, dtype, chain, kernels):
    settings = dataclasses.replace(SETTINGS["softmax-hedgehog"], **change)
    size = Size(nodes=65, pending=0, dim=dim, value_dim=dim)
    ports = make_case(settings, size, dtype=dtype, chain=True)
    with pytest.raises(RuntimeError, match="prefill kernels do not serve"):
        kernels.step(ports, settings, 1.0, variant=PREFILL, chain=chain)


def test_workspace_grows_with_nodes_and_sequences(kernels):
    settings, sizes = SETTINGS["softmax-hedgehog"], []
    for batch, nodes in ((1, 65), (1, 128), (1, 129), (2, 129)):
        size = Size(batch=batch, nodes=nodes, pending=0, dim=64, value_dim=64)
        ports = make_case(settings, size, dtype=torch.float16, chain=True)
        call = kernels.prepare(
            ports, kernels.outputs(ports, in_place=False), settings, 1.0, variant=PREFILL, chain=True
        )
        sizes.append(kernels.library.lineahead_workspace_size(ctypes.byref(call)))
    assert sizes == [2 * 6 * 64 * 128 * 2, *sizes[:1], 3 * 6 * 64 * 128 * 2, 2 * sizes[2]]
