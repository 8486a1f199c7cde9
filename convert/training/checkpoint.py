"""Training progress on disk: safetensors and JSON in a folder that is replaced as a whole."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lineahead.convert.training.sharding import spread_like, whole
from lineahead.errors import TrainingError
from lineahead.recipes.files import replacing, write_text

STATE, TENSORS = "state.json", "tensors.safetensors"
_PARAMETER, _OPTIMIZER, _RANDOM = "parameter.", "optimizer.", "random."


@dataclass(frozen=True, kw_only=True)
class Position:
    """How far a run is.

    Attributes:
        recipe: digest of the recipe.
        data: digest of the training tokens.
        stage: number of the stage.
        step: optimiser steps done in it.
        seconds: wall time spent in it.
        processes: number of processes; the data order depends on it.
    """

    recipe: str
    data: str
    stage: int
    step: int
    seconds: float
    processes: int


def digest(data: dict[str, Any]) -> str:
    """SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def save(
    folder: Path,
    position: Position,
    parameters: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    *,
    write: bool = True,
) -> None:
    """Write parameters, optimiser state, random state and position; the previous checkpoint stays until then.

    Sharded tensors are gathered, so that every process calls this; one of them is to `write`.

    Raises:
        StorageError: when it cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        _gather(tensors, _PARAMETER + name, parameter.detach(), write)
        for part, value in optimizer.state.get(parameter, {}).items():
            _gather(tensors, f"{_OPTIMIZER}{name}.{part}", value, write)
    if not write:
        return
    tensors[_RANDOM + "cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors[_RANDOM + "cuda"] = torch.cuda.get_rng_state()
    with replacing(folder) as temporary:
        temporary.mkdir()
        save_file(tensors, temporary / TENSORS)
        write_text(temporary / STATE, json.dumps(asdict(position), indent=2) + "\n")


def _gather(tensors: dict[str, Tensor], name: str, value: Tensor, keep: bool) -> None:
    found = whole(value)
    if keep:
        tensors[name] = found.contiguous().cpu()


def position_of(folder: Path) -> Position | None:
    """The checkpoint's position; None when there is no checkpoint.

    Raises:
        TrainingError: when it is damaged.
    """
    if not (folder / STATE).is_file():
        return None
    try:
        return Position(**json.loads((folder / STATE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(folder, error) from error


def load(folder: Path, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's tensors into `parameters`, `optimizer` and the random generators.

    Raises:
        TrainingError: when it is damaged or belongs to other parameters.
    """
    try:
        tensors = load_file(folder / TENSORS)
    except (OSError, SafetensorError) as error:
        raise _damaged(folder, error) from error
    stored = {name.removeprefix(_PARAMETER) for name in tensors if name.startswith(_PARAMETER)}
    if stored != set(parameters):
        odd = sorted(stored ^ set(parameters))[0]
        raise TrainingError(
            f"{folder}: the checkpoint is of another model: {odd}", hint="Delete the folder to start over."
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(spread_like(tensors[_PARAMETER + name], parameter))
            prefix = f"{_OPTIMIZER}{name}."
            state = {
                key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
            }
            if state:
                optimizer.state[parameter] = {
                    part: _placed(value, part, parameter) for part, value in state.items() if "." not in part
                }
    torch.set_rng_state(tensors[_RANDOM + "cpu"])
    if torch.cuda.is_available() and _RANDOM + "cuda" in tensors:
        torch.cuda.set_rng_state(tensors[_RANDOM + "cuda"])


def _placed(value: Tensor, part: str, parameter: nn.Parameter) -> Tensor:
    if part == "step":
        return value.to(parameter.device) if parameter.is_cuda else value
    return spread_like(value, parameter)


def _damaged(folder: Path, error: Exception) -> TrainingError:
    return TrainingError(f"{folder}: damaged checkpoint: {error}", hint="Delete the folder to start over.")
