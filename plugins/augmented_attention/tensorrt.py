"""The operator as a TensorRT plugin: its name, fields, ports and types. Standard library only.

The one description of it: the plugin library (``csrc/tensorrt``) has the same tables, and a test compares;
whoever writes a graph for TensorRT reads this.

* The plugin takes all 18 ports of ``schema.INPUTS`` and gives all 6 of ``schema.OUTPUTS``, in that order.
  Ports that the settings leave unused are not dropped: they are tensors of one element, as in the ONNX graph.
* `query`, `key`, `value`, the windows, the pending rows and the parameters share one type; `state` and `norm`
  are float32.
* TensorRT 8.6 has neither int64 nor bool plugin inputs: there the three index ports and `ancestors` are int32
  (cast in the graph).
* Where the builder's preview feature ALIASED_PLUGIN_IO_10_03 is on (TensorRT 10.3 and later), the state is
  updated in place.
"""

from typing import Any, Literal

from lineahead.plugins.augmented_attention.schema import (
    CALL,
    INPUTS,
    OP_TYPE,
    OUTPUTS,
    STATE,
    AttentionSettings,
)
from lineahead.plugins.step_fusions import schema as step_fusions

NAME, VERSION, NAMESPACE = OP_TYPE, "1", ""

Kind = Literal["string", "int", "float"]
_KINDS: dict[type, Kind] = {str: "string", bool: "int", int: "int", float: "float"}

# Not in the ONNX node; they may be left out.
OWN_FIELDS: dict[str, Kind] = {"chain": "int", **step_fusions.OWN_FIELDS}
FIELDS: dict[str, Kind] = {
    **{name: _KINDS[type(value)] for name, value in AttentionSettings().as_dict().items()},
    "scale": "float",
    **OWN_FIELDS,
}

FLOATS_8, FLOATS = ("float32", "float16"), ("float32", "float16", "bfloat16")


def attributes(
    settings: AttentionSettings, scale: float, *, chain: bool = False, precision: str = "any"
) -> dict[str, str | int | float]:
    """The node's attributes, by FIELDS.

    Args:
        settings: the operator's settings.
        scale: multiplier of ``q . k``.
        chain: promise that `ancestors` is always a lower triangle: it is not read then, and long calls are
            prefilled.
        precision: type of the float ports but `state` and `norm`: ``fp32``, ``fp16``, ``bf16`` or ``any``.
    """
    own = {"scale": float(scale), "chain": chain, "precision": precision}
    values: dict[str, Any] = {**settings.as_dict(), **own}
    return {name: int(value) if isinstance(value, bool) else value for name, value in values.items()}


def input_types(name: str, major: int) -> tuple[str, ...]:
    """Element types that an input port may have.

    Args:
        name: one of ``schema.INPUTS``.
        major: TensorRT's major version.
    """
    if name in ("state", "norm"):
        return ("float32",)
    if name == "ancestors":
        return ("int32",) if major < 10 else ("bool", "int32")
    if name in CALL:
        return ("int32",) if major < 10 else ("int32", "int64")
    return FLOATS_8 if major < 10 else FLOATS


def aliases(settings: AttentionSettings) -> dict[str, str]:
    """Outputs that may be the buffer of an input, by name; the others must not overlap anything."""
    return {name: name for name in settings.state_ports}


def description() -> dict[str, Any]:
    """What the library says of itself under ``lineahead_plugin_description``, but for its build."""
    return {
        "name": NAME,
        "version": VERSION,
        "namespace": NAMESPACE,
        "inputs": list(INPUTS),
        "outputs": list(OUTPUTS),
        "aliased": list(STATE),
        "fields": dict(FIELDS),
        "fusions": step_fusions.description(),
    }
