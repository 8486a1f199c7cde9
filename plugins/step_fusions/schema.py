"""The fused operators: names, ports, attributes. Standard library only.

The one description of them: the plugin library (``csrc/tensorrt``) has the same tables, and a test compares.

* ``AddRMSNorm``: ``total = x + residual``, ``normed = total / sqrt(mean(total^2) + epsilon) * weight``, all
  of ``[.., D]``, `weight` of ``[D]``; `residual` and `total` are float32, so that what runs through all
  layers is not rounded in each and cannot overflow. ``RMSNorm`` is that without a residual.
  Source: Zhang and Sennrich, 2019, arXiv:1910.07467.
* ``RotaryHeads``: a merged product ``[B, T, (H + 2 Hkv) D]``, queries, keys and values side by side, with
  `cos` and `sin` of ``[B, T, D / 2]``, becomes `query` ``[B, H, T, D]``, `key` and `value`
  ``[B, Hkv, T, D]``; queries and keys are rotated: their halves ``a, b`` become
  ``(a cos - b sin, b cos + a sin)``.
  Source: Su et al., 2021, arXiv:2104.09864, its pairs taken half a head apart.
* ``RotaryTable``: `positions` ``[B, T]`` of int32 and `frequencies` ``[D / 2]`` become `cos` and `sin` of
  their products, ``[B, T, D / 2]``, once for all layers. All is float32 whatever the model's type is: an
  angle in 16 bits is wrong by radians at late positions, and TensorRT 8.6 may compute so what is no plugin.
* ``GatedUnit``: a merged product ``[.., 2 F]``, gate and up side by side, becomes ``activation(gate) * up``.
  Source: Shazeer, 2020, arXiv:2002.05202.

Ports share one type, float32, float16 or (TensorRT 10) bfloat16, but for integers and the wide ones, which
are float32; arithmetic is float32. The plugins have one more field, `precision` (``any``, ``fp32``, ``fp16``,
``bf16``), which may be left out: TensorRT 8.6 chooses types by itself, and chose float32 in fp16 networks.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from lineahead.plugins.augmented_attention.schema import DOMAIN as DOMAIN

Kind = Literal["string", "int", "float"]
ACTIVATIONS = ("silu", "gelu_tanh", "gelu")
OWN_FIELDS: dict[str, Kind] = {"precision": "string"}  # of the plugins alone


@dataclass(frozen=True, kw_only=True)
class Fusion:
    """One operator.

    Attributes:
        name: of the node and of the plugin, whose version is ``1``.
        inputs: names of its operands, in order; the first one's type is the others'.
        outputs: names of its results, in order.
        wide: operands and results that are always float32.
        integers: operands that are always int32.
        fields: attributes by name; none is optional.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    wide: tuple[str, ...] = ()
    integers: tuple[str, ...] = ()
    fields: dict[str, Kind] = field(default_factory=dict)


ADD_RMS_NORM = Fusion(
    name="AddRMSNorm",
    inputs=("x", "residual", "weight"),
    outputs=("normed", "total"),
    wide=("residual", "weight", "total"),
    fields={"epsilon": "float"},
)
RMS_NORM = Fusion(
    name="RMSNorm", inputs=("x", "weight"), outputs=("normed",), wide=("weight",), fields={"epsilon": "float"}
)
ROTARY_HEADS = Fusion(
    name="RotaryHeads",
    inputs=("product", "cos", "sin"),
    outputs=("query", "key", "value"),
    wide=("cos", "sin"),
    fields={"heads": "int", "kv_heads": "int", "head_dim": "int"},
)
GATED_UNIT = Fusion(
    name="GatedUnit", inputs=("product",), outputs=("output",), fields={"activation": "string"}
)
ROTARY_TABLE = Fusion(
    name="RotaryTable",
    inputs=("positions", "frequencies"),
    outputs=("cos", "sin"),
    wide=("frequencies", "cos", "sin"),
    integers=("positions",),
)
FUSIONS = {one.name: one for one in (ADD_RMS_NORM, RMS_NORM, ROTARY_HEADS, GATED_UNIT, ROTARY_TABLE)}


def description() -> dict[str, Any]:
    """What the plugin library says of them."""
    return {
        one.name: {
            "inputs": list(one.inputs),
            "outputs": list(one.outputs),
            "fields": one.fields | OWN_FIELDS,
        }
        for one in FUSIONS.values()
    }
