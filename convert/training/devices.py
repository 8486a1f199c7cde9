"""Where training runs: what accelerate finds, unless told otherwise."""

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
    return Accelerator(cpu=device == "cpu")
