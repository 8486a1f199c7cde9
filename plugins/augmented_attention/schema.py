"""What the augmented-attention operator is: settings, ports, state shapes. Standard library only.

The operator (You et al., 2024, arXiv:2406.07368, section 4; the shared-denominator form is Zhang et al.,
2024,
arXiv:2410.10254, eq. 6), for query row i at position p_i and head h::

    local_ij = local_scale_h * f(scale * q_i . k_j)              j visible, in the same group or window
    far_ij   = alpha_h * phi_q(q_i) . phi_k(k_j)                 j visible, outside it
    num_i    = sum_j (local_ij + far_ij) v_j + alpha_h * phi_q(q_i) S
    out_i    = normalize(num_i) + sum_t conv[h, t] v_{p_i - t}

Keys at the first `sinks` positions of a text are local to every query and never enter S: pretrained softmax
attention parks
its unused mass there (Xiao et al., 2023, arXiv:2309.17453).

Every other module of this folder is one *form* of it and takes these ports by these names in this order.
"""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from lineahead.errors import SettingsError

DOMAIN = "lineahead"
OP_TYPE = "AugmentedAttention"
OP_VERSION = 1

DATA = ("query", "key", "value")
CALL = ("ancestors", "length", "accept_index", "accept_count")
STATE = ("state", "norm", "window_key", "window_value")
PENDING = ("pending_key", "pending_value")
PARAMETERS = ("alpha", "local_scale", "conv", "query_map", "key_map")
INPUTS = (*DATA, *CALL, *STATE, *PENDING, *PARAMETERS)
OUTPUTS = ("output", *STATE, "pending_key")

Local = Literal["none", "relu2", "softmax"]
Pattern = Literal["none", "grouped", "sliding"]
Normalizer = Literal["none", "denominator"]


@dataclass(frozen=True, kw_only=True)
class AttentionSettings:
    """Everything about the operator that is not a tensor; saved in the checkpoint's config.

    Attributes:
        local: kernel f inside the group or window; ``relu2`` is ``relu(x)**2``, ``softmax`` is ``exp(x -
            max)``.
        pattern: which keys are local: ``grouped`` (block diagonal), ``sliding`` (the last `window` keys),
            ``none``.
        window: group size or window width, in tokens.
        feature_map: name of a map in ``feature_maps`` (phi); ``none`` drops the global term and its state.
        feature_dim: columns of a learned map's projection; 0 means the head dimension.
        normalizer: ``denominator`` divides by the sum of the weights, ``none`` does not.
        qk_norm: L2-normalise queries and keys (after RoPE), and use a scale of 1.
        conv_taps: taps of the causal depthwise convolution over the values, one filter per head; 0 for none.
        eps: added inside square roots and to denominators.
        sinks: first positions of a text that stay local for ever; they have rows of their own after the ring.
    """

    local: Local = "relu2"
    pattern: Pattern = "grouped"
    window: int = 64
    feature_map: str = "identity"
    feature_dim: int = 0
    normalizer: Normalizer = "none"
    qk_norm: bool = True
    conv_taps: int = 32
    eps: float = 1e-6
    sinks: int = 0

    def __post_init__(self) -> None:
        """Refuse impossible combinations.

        Raises:
            SettingsError: naming the setting at fault.
        """
        for name, kinds in (("local", Local), ("pattern", Pattern), ("normalizer", Normalizer)):
            if getattr(self, name) not in get_args(kinds):
                raise SettingsError(
                    f"{name}={getattr(self, name)!r} is not known",
                    hint=f"Choose one of: {', '.join(get_args(kinds))}.",
                )
        if (self.local == "none") != (self.pattern == "none"):
            raise SettingsError(
                f"local={self.local!r} with pattern={self.pattern!r}: both are 'none' or neither is",
                hint="Choose a local kernel for the pattern, or set both to 'none'.",
            )
        if self.window < 1 or min(self.conv_taps, self.feature_dim, self.sinks) < 0:
            raise SettingsError(
                f"window={self.window}, conv_taps={self.conv_taps}, feature_dim={self.feature_dim}, "
                f"sinks={self.sinks} out of range",
                hint="window is at least 1, the others at least 0.",
            )
        if self.sinks and self.local == "none":
            raise SettingsError(
                f"sinks={self.sinks} with local='none'", hint="Sinks are local keys: set local, or sinks: 0."
            )
        if self.local == "none" and self.feature_map == "none":
            raise SettingsError(
                "neither a local kernel nor a feature map: nothing attends", hint="Set local or feature_map."
            )
        if self.normalizer == "none" and self.local == "softmax":
            raise SettingsError(
                "local='softmax' needs normalizer='denominator'", hint="Set normalizer: denominator."
            )

    @property
    def has_state(self) -> bool:
        """Whether a global state S exists."""
        return self.feature_map != "none"

    @property
    def has_norm(self) -> bool:
        """Whether the state has a second part z, the sum of phi(k)."""
        return self.has_state and self.normalizer == "denominator"

    @property
    def ring_rows(self) -> int:
        """Rows of the ring of recent keys and values; position p lives in row ``p % ring_rows``."""
        local = 0 if self.pattern == "none" else self.window
        return max(local, self.conv_taps - 1, 1)

    @property
    def window_rows(self) -> int:
        """Rows of window_key and window_value: the ring, then one row a sink."""
        return self.ring_rows + self.sinks

    @property
    def state_ports(self) -> tuple[str, ...]:
        """Names of the state tensors that exist under these settings, in STATE order."""
        absent = {"state": not self.has_state, "norm": not self.has_norm}
        return tuple(name for name in STATE if not absent.get(name, False))

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionary for JSON and for node attributes."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "AttentionSettings":
        """Inverse of :meth:`as_dict`.

        Raises:
            SettingsError: on an unknown key.
        """
        unknown = sorted(set(data) - {field.name for field in fields(cls)})
        if unknown:
            raise SettingsError(
                f"unknown attention setting {unknown[0]!r}",
                hint=f"Known settings: {', '.join(field.name for field in fields(cls))}.",
            )
        return cls(**data)


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """Head layout of one attention layer: `heads` query heads share `kv_heads` key/value heads."""

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int


PRESETS: dict[str, AttentionSettings] = {
    "augmented": AttentionSettings(),
    "softmax-hedgehog": AttentionSettings(
        local="softmax",
        pattern="sliding",
        feature_map="hedgehog",
        normalizer="denominator",
        qk_norm=False,
        sinks=4,
    ),
}


def preset(name: str, **changes: Any) -> AttentionSettings:
    """The named preset, with some settings replaced.

    Raises:
        SettingsError: when no preset has that name.
    """
    if name not in PRESETS:
        raise SettingsError(f"unknown method {name!r}", hint=f"Choose one of: {', '.join(PRESETS)}.")
    return replace(PRESETS[name], **changes)


def folded(settings: AttentionSettings, length: Any) -> Any:
    """First position not yet in S after `length` committed tokens (an int or an integer array)."""
    if settings.pattern == "grouped":
        return length // settings.window * settings.window
    if settings.pattern == "sliding":
        first = length - settings.window + 1
        return first * (first > 0)
    return length


def state_shapes(
    settings: AttentionSettings, shape: LayerShape, features: int, batch: int
) -> dict[str, tuple[int, ...]]:
    """Shapes of the state tensors that exist, by port name.

    Args:
        settings: the operator's settings.
        shape: the layer's heads.
        features: width F of the feature map (``feature_maps.width``).
        batch: number of sequences.
    """
    rows, heads = settings.window_rows, shape.kv_heads
    shapes = {
        "state": (batch, heads, features, shape.value_dim),
        "norm": (batch, heads, features),
        "window_key": (batch, heads, rows, shape.head_dim),
        "window_value": (batch, heads, rows, shape.value_dim),
    }
    return {name: shapes[name] for name in settings.state_ports}
