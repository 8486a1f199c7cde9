"""The CUDA kernels, compiled for the CPU: threads are fibers, taken in any order (`gpu/emulated`)."""

import pytest
import torch
from operator_kernel_cases import SETTINGS, TOLERANCE, Size, check

from lineahead.plugins.augmented_attention.methods import PRESETS

TYPES = tuple(TOLERANCE)


def test_every_causal_preset_is_among_the_settings():
    assert {name for name, settings in PRESETS.items() if settings.causal} <= set(SETTINGS)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("in_place", [False, True])
def test_a_call_is_the_step_in_double_precision(name, in_place, kernels, monkeypatch):
    """Trees of two ragged sequences; blocks and threads run in a random order."""
    turn = list(SETTINGS).index(name) + in_place
    monkeypatch.setenv("EMULATED_ORDER", str(turn))
    size = Size(nodes=(1, 5, 17)[turn % 3], length=(70, 63), pending=(6, 0, 3)[turn // 3 % 3], dim=16)
    check(kernels, SETTINGS[name], size, dtype=TYPES[turn % 3], seed=turn, in_place=in_place, value_slice=16)


@pytest.mark.parametrize("name", ["augmented", "softmax-hedgehog"])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize(("nodes", "heads"), [(1, 2), (1, 6), (3, 2), (16, 2), (17, 4)])
def test_the_streaming_kernel_of_a_preset_has_no_race(name, dim, nodes, heads, kernels, monkeypatch):
    """One row a block, up to 8, up to 16, several tiles: any order of threads gives the same bits."""
    size = Size(nodes=nodes, heads=heads, kv_heads=2, dim=dim, value_dim=dim, pending=8, length=(62, 130))
    dtype, in_place = TYPES[1 + nodes % 2], nodes != 3
    found = []
    for order in ("1", "2"):
        monkeypatch.setenv("EMULATED_ORDER", order)
        options = {"seed": nodes, "value_slice": dim if dim == 64 else 0, "variant": 2, "in_place": in_place}
        found.append(check(kernels, SETTINGS[name], size, dtype=dtype, **options))
    assert found[0] == found[1]


def test_a_missing_workspace_is_refused(kernels):
    from operator_kernel_cases import make_case

    settings = SETTINGS["yoso"]
    ports = make_case(settings, Size(nodes=1), dtype=torch.float32)
    call = kernels.prepare(ports, kernels.outputs(ports, in_place=False), settings, 1.0)
    call.workspace = None
    with pytest.raises(RuntimeError, match="no workspace"):
        kernels.launch(call)
