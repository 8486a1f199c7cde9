"""Where training runs: what accelerate finds, unless told otherwise."""

import os

import torch
from accelerate import Accelerator

from lineahead.errors import TrainingError


def accelerate_on(device: str | None) -> Accelerator:
    """The accelerator for ``cpu``, ``cuda``, or whatever there is when None.

    Raises:
        TrainingError: when the device is not there.
    """
    if device not in (None, "cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise TrainingError(f"no device {device!r} here", hint="Leave the device out, or use cpu.")
    found = Accelerator(cpu=device == "cpu")
    # `accelerate launch --use_fsdp` has transformers load empty weights on all processes but one.
    # Here every process shards what it has loaded.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    return found
