"""The step form as torch operator `lineahead::augmented_attention`, which torch.export keeps in one piece."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from lineahead.plugins.augmented_attention.schema import DOMAIN, INPUTS, OUTPUTS, AttentionSettings
from lineahead.plugins.augmented_attention.step import step

SETTINGS = tuple(field.name for field in fields(AttentionSettings))
KINDS = {name: type(value) for name, value in AttentionSettings().as_dict().items()}
QUALIFIED_NAME = f"{DOMAIN}::augmented_attention"


def _torch_schema() -> str:
    tensors = [f"Tensor {name}" for name in INPUTS]
    settings = [f"{KINDS[name].__name__} {name}" for name in SETTINGS]
    return f"({', '.join([*tensors, *settings, 'float scale'])}) -> ({', '.join(['Tensor'] * len(OUTPUTS))})"


def attributes(settings: AttentionSettings, scale: float) -> dict[str, Any]:
    """Everything that is not a tensor, in the order in which the operator takes it after its ports."""
    return {**settings.as_dict(), "scale": float(scale)}


def _run(*arguments: Any) -> tuple[Tensor, ...]:
    """:func:`step.step` with the settings spelled out; custom operators must copy what passes through."""
    ports, rest = arguments[: len(INPUTS)], arguments[len(INPUTS) :]
    settings = AttentionSettings(**dict(zip(SETTINGS, rest[:-1], strict=True)))
    results = step(*ports, settings=settings, scale=rest[-1])
    return tuple(y.clone() if any(y is x for x in ports) else y for y in results)


def _shapes(*arguments: Any) -> tuple[Tensor, ...]:
    ports = dict(zip(INPUTS, arguments[: len(INPUTS)], strict=True))
    query, value = ports["query"], ports["value"]
    output = query.new_empty((*query.shape[:-1], value.shape[-1]))
    same = (ports[name] for name in ("state", "norm", "window_key", "window_value", "key"))
    return (output, *(torch.empty_like(port) for port in same))


augmented_attention: Callable[..., tuple[Tensor, ...]] = torch.library.custom_op(
    QUALIFIED_NAME, _run, mutates_args=(), schema=_torch_schema()
)
augmented_attention.register_fake(_shapes)  # type: ignore[attr-defined]
