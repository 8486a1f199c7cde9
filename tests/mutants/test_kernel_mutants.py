"""The CUDA kernels' tests are worth something only if they fail on damaged kernels; compiled for the CPU."""

import pytest
from mutant_kernel_catalogue import KERNEL_MUTANTS, PREFILL, STEP, STREAM
from mutant_kernel_verdict import verdict
from operator_kernel_build import build_emulated
from operator_kernel_call import Kernels

from lineahead.plugins.augmented_attention import native

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(native.find_compiler() is None, reason="no C++ compiler"),
]


@pytest.fixture(autouse=True)
def shuffled(monkeypatch):
    """Blocks run in an order of their own, so that one that writes too early is found out."""
    monkeypatch.setenv("EMULATED_ORDER", "3")


@pytest.mark.parametrize("kernel", [STEP, STREAM, PREFILL])
def test_whole_kernels_pass(kernel, tmp_path):
    assert verdict(Kernels(build_emulated(tmp_path)), kernel) is None


@pytest.mark.parametrize("mutant", KERNEL_MUTANTS, ids=lambda mutant: f"{mutant[1]}-{mutant[0]}")
def test_mutant_dies(mutant, tmp_path, record_property):
    name, kernel, *edit = mutant
    killer = verdict(Kernels(build_emulated(tmp_path, tuple(edit))), kernel)
    record_property("killed_by", killer)
    print(killer)
    assert killer is not None, f"{name}: survived every check"
