"""The CUDA kernels' tests are worth something only if they fail on damaged kernels; compiled for the CPU."""

import itertools

import pytest
import torch
from mutant_kernel_catalogue import KERNEL_MUTANTS, STEP, STREAM
from operator_kernel_build import build_emulated
from operator_kernel_call import Kernels
from operator_kernel_cases import SETTINGS, Size, check

from lineahead.plugins.augmented_attention import native

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(native.find_compiler() is None, reason="no C++ compiler"),
]
FIRST = ("softmax-hedgehog", "augmented", "grouped-softmax", "many-sinks", "augmented-relu")


def verdict(kernels, kernel):
    """The first case that fails, or None."""
    for name, nodes, in_place in itertools.product(FIRST, (5, 17, 1), (True, False)):
        size = Size(nodes=nodes, length=(62, 127), pending=6, dim=32, value_dim=64)
        dtype = torch.float32 if kernel == STEP else torch.float16
        options = {"in_place": in_place, "value_slice": 32, "variant": kernel}
        try:
            check(kernels, SETTINGS[name], size, dtype=dtype, seed=nodes, **options)
        except AssertionError as error:
            return f"{name}, {nodes} nodes: {str(error).splitlines()[0][:80]}"
    return None


@pytest.fixture(autouse=True)
def shuffled(monkeypatch):
    """Blocks run in an order of their own, so that one that writes too early is found out."""
    monkeypatch.setenv("EMULATED_ORDER", "3")


@pytest.mark.parametrize("kernel", [STEP, STREAM])
def test_whole_kernels_pass(kernel, tmp_path):
    assert verdict(Kernels(build_emulated(tmp_path)), kernel) is None


@pytest.mark.parametrize("mutant", KERNEL_MUTANTS, ids=lambda mutant: f"{mutant[1]}-{mutant[0]}")
def test_mutant_dies(mutant, tmp_path, record_property):
    name, kernel, *edit = mutant
    killer = verdict(Kernels(build_emulated(tmp_path, tuple(edit))), kernel)
    record_property("killed_by", killer)
    print(killer)
    assert killer is not None, f"{name}: survived every check"
