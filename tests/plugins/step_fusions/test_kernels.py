"""The fused kernels, emulated on the CPU, against float64."""

import pytest
import torch
from fusion_call import FusedKernels
from fusion_cases import CASES, ROUNDOFF, expected, ports_of, results_like, worst_error

from lineahead.plugins.step_fusions.schema import GATED_UNIT, ROTARY_HEADS


@pytest.fixture(scope="module")
def kernels(emulated):
    return FusedKernels(emulated())


@pytest.mark.parametrize("dtype", ROUNDOFF)
@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{name}-{shape}" for name, shape, _ in CASES])
def test_results_are_float64s_rounded(case, dtype, kernels, monkeypatch):
    """Threads in a shuffled order; memory that is aligned, and memory that is not."""
    name, shape, fields = CASES[case]
    monkeypatch.setenv("EMULATED_ORDER", str(case))
    for shift in (0, 1):
        ports = ports_of(name, shape, fields=fields, dtype=dtype, seed=case, shift=shift)
        wanted = expected(name, ports, fields)
        out = results_like(name, ports, wanted, shift)
        before = {port: x.clone() for port, x in ports.items()}
        kernels(name, ports, out, fields)
        assert worst_error(out, wanted) <= 1
        assert all(torch.equal(x, before[port]) for port, x in ports.items())


def test_sums_beyond_16_bits_neither_overflow_nor_lose_what_is_small(kernels):
    x = torch.tensor([[60000.0, 3.0, 0.001]], dtype=torch.float16)
    ports = {"x": x, "residual": torch.tensor([[60000.1, 0.0001, 3000.0]]), "weight": torch.ones(3)}
    wanted = expected("AddRMSNorm", ports, {"epsilon": 0.0})
    out = results_like("AddRMSNorm", ports, wanted)
    kernels("AddRMSNorm", ports, out, {"epsilon": 0.0})
    assert worst_error(out, wanted) <= 1


def test_squares_beyond_16_bits_do_not_overflow(kernels):
    ports = ports_of("RMSNorm", (2, 64), fields={}, dtype=torch.float16)
    ports["x"] *= 10000
    wanted = expected("RMSNorm", ports, {"epsilon": 1e-5})
    out = results_like("RMSNorm", ports, wanted)
    kernels("RMSNorm", ports, out, {"epsilon": 1e-5})
    assert worst_error(out, wanted) <= 1


@pytest.mark.parametrize("gate", [-200.0, -90.0, 90.0, 60000.0])
def test_large_gates_stay_finite(gate, kernels):
    ports = {"product": torch.tensor([[gate, gate, 0.5, -1.0]])}
    for activation in ("silu", "gelu_tanh", "gelu"):
        wanted = expected(GATED_UNIT.name, ports, {"activation": activation})
        out = results_like(GATED_UNIT.name, ports, wanted)
        kernels(GATED_UNIT.name, ports, out, {"activation": activation})
        assert worst_error(out, wanted) <= 1


def test_what_cannot_be_is_refused(kernels):
    ports = {"product": torch.zeros(1, 1, 9), "cos": torch.zeros(1), "sin": torch.zeros(1)}
    fields = {"heads": 1, "kv_heads": 1, "head_dim": 3}
    with pytest.raises(RuntimeError, match="odd dimension"):
        kernels(ROTARY_HEADS.name, ports, dict.fromkeys(("query", "key", "value"), ports["product"]), fields)
    huge = {"heads": 1 << 20, "kv_heads": 1 << 20, "head_dim": 1 << 20}
    with pytest.raises(RuntimeError, match="more numbers than a call can have"):
        kernels(ROTARY_HEADS.name, ports, dict.fromkeys(("query", "key", "value"), ports["product"]), huge)
