"""What a damaged CUDA kernel is asked: the first case that fails, on the GPU or emulated."""

import dataclasses
import itertools
from typing import Any

import torch
from mutant_kernel_catalogue import PREFILL, STEP
from operator_kernel_cases import SETTINGS, Size, check

FIRST = ("softmax-hedgehog", "augmented", "grouped-softmax", "many-sinks", "augmented-relu")


def verdict(kernels: Any, kernel: int, *, device: str = "cpu") -> str | None:
    """The first case that fails, or None.

    Args:
        kernels: a library of kernels.
        kernel: which of them is asked: the general one in float32, the other two in float16.
        device: where the calls run; ``cpu`` for emulated kernels.
    """
    if kernel == PREFILL:
        return _verdict_of_prefill(kernels, device)
    for name, nodes, in_place in itertools.product(FIRST, (5, 17, 1), (True, False)):
        size = Size(nodes=nodes, length=(62, 127), pending=6, dim=32, value_dim=64)
        dtype = torch.float32 if kernel == STEP else torch.float16
        options = {"in_place": in_place, "value_slice": 32, "variant": kernel}
        try:
            check(kernels, SETTINGS[name], size, dtype=dtype, device=device, seed=nodes, **options)
        except (AssertionError, RuntimeError) as error:
            return f"{name}, {nodes} nodes: {str(error).splitlines()[0][:80]}"
    return None


def _verdict_of_prefill(kernels: Any, device: str) -> str | None:
    options = {"dtype": torch.float16, "variant": PREFILL, "chain": True, "in_place": True, "device": device}
    calls = (0, 150, 62, 200), (32, 66, 1, 1), (0, 66, 1, 1)
    for name, (taps, nodes, length, pending) in itertools.product(FIRST[:2], calls):
        settings = dataclasses.replace(SETTINGS[name], conv_taps=taps)
        sizes = {"nodes": nodes, "length": (length, 2), "pending": pending, "accepts": pending}
        try:
            check(kernels, settings, Size(dim=64, value_dim=64, **sizes), **options)
        except (AssertionError, RuntimeError) as error:
            return f"{name}, {nodes} nodes: {str(error).splitlines()[0][:80]}"
    return None
