"""Which layers of a transformers model carry the operator, and the attachment of its parameters."""

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from lineahead.plugins.augmented_attention.module import AugmentedAttention, CrossAttention
from lineahead.plugins.augmented_attention.roles import Role
from lineahead.plugins.augmented_attention.schema import AttentionSettings, LayerShape

ATTRIBUTE = "lineahead"


@dataclass(frozen=True, kw_only=True)
class LinearLayer:
    """One converted attention layer.

    Attributes:
        name: dotted path of the attention module in the model, e.g. ``model.layers.0.self_attn``.
        index: its ``layer_idx``: which cache layer and which ``past.{i}.*`` ports it owns.
        shape: its heads.
        settings: its operator settings.
        role: self-attention of a decoder, self-attention of an encoder, or attention from one to the other.
    """

    name: str
    index: int
    shape: LayerShape
    settings: AttentionSettings
    role: Role = "decoder"

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionary for ``config.json``."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "LinearLayer":
        """Inverse of :meth:`as_dict`."""
        return cls(
            name=data["name"],
            index=data["index"],
            shape=LayerShape(**data["shape"]),
            settings=AttentionSettings.from_dict(data["settings"]),
            role=data.get("role", "decoder"),
        )


def attach(model: nn.Module, layers: list[LinearLayer]) -> None:
    """Give each listed attention module its parameters, as the submodule `lineahead`."""
    for layer in layers:
        module = model.get_submodule(layer.name)
        kind = CrossAttention if layer.role == "cross" else AugmentedAttention
        module.add_module(ATTRIBUTE, kind(layer.settings, layer.shape))
