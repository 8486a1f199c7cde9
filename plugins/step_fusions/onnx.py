"""The fused operators as ONNX nodes, each with a function body of standard operators up to opset 17."""

import functools
from collections.abc import Sequence
from typing import Any

import onnx
import onnx_ir as ir

from lineahead.plugins.step_fusions.schema import (
    ADD_RMS_NORM,
    DOMAIN,
    FUSIONS,
    GATED_UNIT,
    RMS_NORM,
    ROTARY_HEADS,
    ROTARY_TABLE,
    Fusion,
)

OPSET = 17
_NORM = """
    epsilon = Constant <value_float: float = @epsilon> ()
    square = Mul (total, total)
    mean = ReduceMean <axes = [-1], keepdims = 1> (square)
    shifted = Add (mean, epsilon)
    root = Sqrt (shifted)
    unit = Div (total, root)
    normed = Mul (unit, weight)
"""
_ROTARY = """
    heads = Constant <value_int: int = @heads> ()
    shared = Constant <value_int: int = @kv_heads> ()
    dim = Constant <value_int: int = @head_dim> ()
    axis = Constant <value_ints = [0]> ()
    same = Constant <value_ints = [0, 0]> ()
    both = Add (shared, shared)
    all = Add (heads, both)
    heads_1 = Unsqueeze (heads, axis)
    shared_1 = Unsqueeze (shared, axis)
    all_1 = Unsqueeze (all, axis)
    dim_1 = Unsqueeze (dim, axis)
    shape = Concat <axis = 0> (same, all_1, dim_1)
    counts = Concat <axis = 0> (heads_1, shared_1, shared_1)
    apart = Reshape (product, shape)
    first = Transpose <perm = [0, 2, 1, 3]> (apart)
    q, k, value = Split <axis = 1> (first, counts)
    one = Constant <value_ints = [1]> ()
    c = Unsqueeze (cos, one)
    s = Unsqueeze (sin, one)
    qa, qb = Split <axis = -1> (q)
    qac = Mul (qa, c)
    qbs = Mul (qb, s)
    qbc = Mul (qb, c)
    qas = Mul (qa, s)
    qx = Sub (qac, qbs)
    qy = Add (qbc, qas)
    query = Concat <axis = -1> (qx, qy)
    ka, kb = Split <axis = -1> (k)
    kac = Mul (ka, c)
    kbs = Mul (kb, s)
    kbc = Mul (kb, c)
    kas = Mul (ka, s)
    kx = Sub (kac, kbs)
    ky = Add (kbc, kas)
    key = Concat <axis = -1> (kx, ky)
"""
_TABLE = """
    last = Constant <value_ints = [-1]> ()
    column = Unsqueeze (positions, last)
    real = Cast <to = 1> (column)
    angle = Mul (real, frequencies)
    cos = Cos (angle)
    sin = Sin (angle)
"""
_ACTIVATIONS = {
    "silu": """
    curve = Sigmoid (gate)
    active = Mul (gate, curve)
""",
    "gelu_tanh": """
    half = Constant <value_float = 0.5> ()
    unit = Constant <value_float = 1.0> ()
    small = Constant <value_float = 0.044715> ()
    root = Constant <value_float = 0.7978845608> ()
    square = Mul (gate, gate)
    cube = Mul (square, gate)
    bent = Mul (cube, small)
    sum = Add (gate, bent)
    inner = Mul (sum, root)
    tanh = Tanh (inner)
    curve = Add (tanh, unit)
    halved = Mul (gate, half)
    active = Mul (halved, curve)
""",
    "gelu": """
    half = Constant <value_float = 0.5> ()
    unit = Constant <value_float = 1.0> ()
    root = Constant <value_float = 0.7071067812> ()
    inner = Mul (gate, root)
    erf = Erf (inner)
    curve = Add (erf, unit)
    halved = Mul (gate, half)
    active = Mul (halved, curve)
""",
}


def fused_node(fusion: Fusion, inputs: Sequence[ir.Value], **attributes: Any) -> ir.Node:
    """A node of `fusion`; its outputs have neither types nor shapes yet.

    Args:
        fusion: which operator.
        inputs: its operands in order.
        attributes: by ``fusion.fields``.
    """
    assert set(attributes) == set(fusion.fields)
    assert len(inputs) == len(fusion.inputs)
    return ir.node(
        fusion.name,
        list(inputs),
        attributes,
        domain=DOMAIN,
        overload=attributes.get("activation", ""),
        num_outputs=len(fusion.outputs),
    )


def attach_bodies(model: ir.Model) -> None:
    """Give the model the function of every fused node in it, for whoever has no kernel."""
    bodies = {(name, overload): text for name, overload, text in _bodies()}
    for node in model.graph:
        if node.domain == DOMAIN and (node.op_type, node.overload) in bodies:
            function = ir.serde.deserialize_function(_parsed(node.op_type, node.overload))
            model.functions.setdefault(function.identifier(), function)
    model.opset_imports.setdefault(DOMAIN, 1)


def _bodies() -> list[tuple[str, str, str]]:
    split = "gate, up = Split <axis = -1> (product)"
    product = "output = Mul (active, up)"
    return [
        (ADD_RMS_NORM.name, "", f"total = Add (x, residual) {_NORM}"),
        (RMS_NORM.name, "", f"total = Identity (x) {_NORM}"),
        (ROTARY_HEADS.name, "", _ROTARY),
        (ROTARY_TABLE.name, "", _TABLE),
        *((GATED_UNIT.name, name, f"{split} {text} {product}") for name, text in _ACTIVATIONS.items()),
    ]


@functools.cache
def _parsed(name: str, overload: str) -> onnx.FunctionProto:
    one, body = FUSIONS[name], next(text for *key, text in _bodies() if key == [name, overload])
    fields = f"<{', '.join(one.fields)}> " if one.fields else ""
    text = (
        f'<opset_import: ["" : {OPSET}], domain: "{DOMAIN}"> {name} {fields}'
        f"({', '.join(one.inputs)}) => ({', '.join(one.outputs)}) {{ {body} }}"
    )
    function = onnx.parser.parse_function(text)
    function.overload = overload
    return function
