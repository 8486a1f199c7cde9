"""What the augmented-attention operator is: settings, ports, state shapes. Standard library only.

The operator (You et al., 2024, arXiv:2406.07368, section 4; the shared-denominator form is Zhang et al.,
2024, arXiv:2410.10254, eq. 6), for query row i at position p_i and head h, under `normalizes` = all::

    local_ij = local_scale_h * f(scale * q_i . k_j)              j visible, in the same group or window
    far_ij   = alpha_h * phi_q(q_i) . phi_k(k_j)                 j visible, outside it
    num_i    = sum_j (local_ij + far_ij) v_j + alpha_h * phi_q(q_i) S
    out_i    = normalize(num_i) + sum_t conv[h, t] v_{p_i - t}

Otherwise `normalize` applies to one of the two terms, before its weight alpha or local_scale, and the other
is added as it is.

Keys at the first `sinks` positions of a text are local to every query and never enter S: pretrained softmax
attention parks its unused mass there (Xiao et al., 2023, arXiv:2309.17453).

Every other module of this folder is one *form* of it and takes these ports by these names in this order.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any

from lineahead.errors import SettingsError
from lineahead.plugins.augmented_attention.feature_maps import FEATURE_MAPS
from lineahead.plugins.augmented_attention.local_kernels import LOCAL_KERNELS
from lineahead.plugins.augmented_attention.normalizers import NORMALIZERS

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

PATTERNS = ("none", "grouped", "sliding")
SCOPES = ("all", "global", "local")


@dataclass(frozen=True, kw_only=True)
class AttentionSettings:
    """Everything about the operator that is not a tensor; saved in the checkpoint's config.

    Attributes:
        local: kernel f inside the group or window, a name in ``local_kernels``; ``none``: those keys count
            for nothing (FLASH's global attention leaves out the own group).
        pattern: which keys are local: ``grouped`` (block diagonal), ``sliding`` (the last `window` keys),
            ``none``.
        window: group size or window width, in tokens.
        feature_map: phi, a name in ``feature_maps``; ``none`` drops the global term and its state.
        feature_dim: columns of a map's projection; 0 means the head dimension.
        normalizer: what an output row is divided by, a name in ``normalizers``; ``none`` for nothing.
        normalizes: what of it: ``all``; or, where there are both, the ``global`` or the ``local`` term alone.
        qk_norm: L2-normalise queries and keys (after RoPE), and use a scale of 1.
        local_norm: do so for the local kernel alone; the feature map takes queries and keys as they are.
        conv_taps: taps of the causal depthwise convolution over the values, one filter per head; 0 for none.
        eps: added inside square roots and to denominators; not under 1e-7, as ONNX Runtime drops additions of
            constants below 1e-8.
        sinks: first positions of a text that stay local for ever; they have rows of their own after the ring.
        causal: False: every token sees the whole text, the convolution has 2 * conv_taps - 1 taps, centred.
    """

    local: str = "relu2"
    pattern: str = "grouped"
    window: int = 64
    feature_map: str = "identity"
    feature_dim: int = 0
    normalizer: str = "none"
    normalizes: str = "all"
    qk_norm: bool = True
    local_norm: bool = False
    conv_taps: int = 32
    eps: float = 1e-6
    sinks: int = 0
    causal: bool = True

    def __post_init__(self) -> None:
        """Refuse impossible combinations.

        Raises:
            SettingsError: naming the setting at fault.
        """
        for name, kinds in (("pattern", PATTERNS), ("normalizes", SCOPES)):
            if getattr(self, name) not in kinds:
                raise SettingsError(
                    f"{name}={getattr(self, name)!r} is not known",
                    hint=f"Choose one of: {', '.join(kinds)}.",
                )
        if self.window < 1 or min(self.conv_taps, self.feature_dim, self.sinks) < 0:
            raise SettingsError(
                f"window={self.window}, conv_taps={self.conv_taps}, feature_dim={self.feature_dim}, "
                f"sinks={self.sinks} out of range",
                hint="window is at least 1, the others at least 0.",
            )
        self._check_local()
        self._check_global()
        self._check_normalizer()

    def _check_local(self) -> None:
        if self.local == "none":
            if self.pattern == "sliding":
                raise SettingsError(
                    "local='none' with pattern='sliding': nothing would attend to the window",
                    hint="Choose a local kernel for the pattern, or set pattern to 'none' or 'grouped'.",
                )
            if self.sinks:
                raise SettingsError(
                    f"sinks={self.sinks} with local='none'",
                    hint="Sinks are local keys: set local, or sinks: 0.",
                )
            if self.local_norm:
                raise SettingsError("local_norm with local='none'", hint="Set local, or local_norm: false.")
            return
        kernel = LOCAL_KERNELS.named(self.local)
        if self.pattern == "none":
            raise SettingsError(
                f"local={self.local!r} with pattern='none': no key is local",
                hint="Set pattern: grouped or sliding, or local: none.",
            )
        if self.qk_norm and self.local_norm:
            raise SettingsError(
                "qk_norm and local_norm: queries and keys would be normalised twice", hint="Set one of them."
            )
        if kernel.cosine and not (self.qk_norm or self.local_norm):
            raise SettingsError(
                f"local={self.local!r} takes cosines, and queries and keys are not normalised",
                hint="Set qk_norm: true, or local_norm: true.",
            )

    def _check_global(self) -> None:
        if not self.has_state:
            if self.local == "none":
                raise SettingsError(
                    "neither a local kernel nor a feature map: nothing attends",
                    hint="Set local or feature_map.",
                )
            return
        feature_map = FEATURE_MAPS.named(self.feature_map)
        scope = "all" if self.local == "none" else "global"
        if feature_map.acausal and (not self.divides or self.normalizes != scope):
            raise SettingsError(
                f"feature_map={self.feature_map!r} has a denominator of its own, "
                f"not normalizer={self.normalizer!r} of {self.normalizes}",
                hint="Set normalizer: denominator, and normalizes: global beside a local kernel, else all.",
            )
        if self.causal and feature_map.acausal:
            raise SettingsError(
                f"feature_map={self.feature_map!r} has no causal form: {feature_map.acausal}",
                hint="Use it in an encoder (causal: false), or choose another method, such as performer.",
            )

    def _check_normalizer(self) -> None:
        of = "" if self.normalizer == "none" else NORMALIZERS.named(self.normalizer).of
        if self.normalizes != "all" and not (of and self.has_state and self.local != "none"):
            raise SettingsError(
                f"normalizes={self.normalizes!r} needs a normalizer, a local kernel and a feature map",
                hint="Set normalizes: all, or what is missing.",
            )
        relative = self.local != "none" and LOCAL_KERNELS.named(self.local).relative
        if relative and (of != "weights" or self.normalizes == "global"):
            raise SettingsError(
                f"local={self.local!r} needs a denominator over its weights, not normalizer="
                f"{self.normalizer!r} of {self.normalizes}",
                hint="Set normalizer: denominator, and normalizes: all or local.",
            )

    @property
    def has_state(self) -> bool:
        """Whether a global state S exists."""
        return self.feature_map != "none"

    @property
    def has_norm(self) -> bool:
        """Whether the state has a second part z, the sum of phi(k)."""
        return self.has_state and self.divides and self.normalizes != "local"

    @property
    def divides(self) -> bool:
        """Whether the normalizer is one of the weights, a denominator."""
        return self.normalizer != "none" and NORMALIZERS.named(self.normalizer).of == "weights"

    @property
    def has_both(self) -> bool:
        """Whether there is a local and a global term, so that their weights matter."""
        return self.has_state and self.local != "none"

    @property
    def floor(self) -> float:
        """Denominators of features alone are held above this."""
        alone = self.has_norm and (self.normalizes == "global" or self.local == "none")
        return FEATURE_MAPS.named(self.feature_map).floor if alone else 0.0

    @property
    def conv_width(self) -> int:
        """Numbers in a head's filter: one side of it, or both."""
        return self.conv_taps if self.causal else max(2 * self.conv_taps - 1, 0)

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
    """Head layout of one attention layer: `heads` query heads share `kv_heads` key/value heads.

    `positions` is the length of the longest text; only methods that mix positions (Linformer) ask for it.
    """

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    positions: int = 512


def require_causal(settings: AttentionSettings, form: str) -> None:
    """Refuse settings of a bidirectional model where only causal ones are served.

    Raises:
        SettingsError: naming `form`.
    """
    if not settings.causal:
        raise SettingsError(
            f"causal=False: {form} is causal", hint="Use the bidirectional form, for encoders."
        )


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
