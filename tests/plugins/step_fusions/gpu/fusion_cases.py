"""Operands of the fused operators, what they should give in float64, and the comparison."""

import torch

from lineahead.plugins.step_fusions.schema import (
    ACTIVATIONS,
    ADD_RMS_NORM,
    FUSIONS,
    GATED_UNIT,
    RMS_NORM,
    ROTARY_HEADS,
    ROTARY_TABLE,
)

# Unit roundoff of the results' type. Arithmetic is float32: a few of its roundoffs, of the largest value.
ROUNDOFF = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
ARITHMETIC, SMALLEST = 5e-7, 2.0**-25


def ports_of(name, shape, *, fields, dtype, device="cpu", seed=0, shift=0):
    """Random operands of operator `name`; each starts `shift` numbers into its memory.

    `shape` is that of the first operand.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = {"x": shape, "residual": shape, "product": shape, "weight": shape[-1:]}
    if name == ROTARY_HEADS.name:
        sizes |= dict.fromkeys(("cos", "sin"), (*shape[:2], fields["head_dim"] // 2))
    if name == ROTARY_TABLE.name:
        sizes = {"positions": shape, "frequencies": (FREQUENCIES,)}
    ports = {}
    for port in FUSIONS[name].inputs:
        fusion, count = FUSIONS[name], int(torch.tensor(sizes[port]).prod()) + shift
        if port in fusion.integers:
            memory = torch.randint(131072, (count,), generator=generator, dtype=torch.int32)
        else:
            kind = torch.float32 if port in fusion.wide else dtype
            memory = torch.randn(count, generator=generator).to(dtype=kind)
        ports[port] = memory.to(device)[shift:].view(sizes[port])
    return ports


def expected(name, ports, fields):
    """Results in float64, by output."""
    wide = {port: x.double() for port, x in ports.items()}
    if name in (ADD_RMS_NORM.name, RMS_NORM.name):
        total = wide["x"] + wide.get("residual", 0)
        root = (total.square().mean(-1, keepdim=True) + fields["epsilon"]).sqrt()
        normed = {"normed": total / root * wide["weight"]}
        return normed | ({"total": total} if name == ADD_RMS_NORM.name else {})
    if name == GATED_UNIT.name:
        gate, up = wide["product"].chunk(2, -1)
        curves = {
            "silu": lambda x: x * torch.sigmoid(x),
            "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
            "gelu": torch.nn.functional.gelu,
        }
        assert set(curves) == set(ACTIVATIONS)
        return {"output": curves[fields["activation"]](gate) * up}
    if name == ROTARY_TABLE.name:  # the angle is float32, as everywhere
        angle = (ports["positions"].float()[..., None] * ports["frequencies"]).double()
        return {"cos": angle.cos(), "sin": angle.sin()}
    heads, shared, dim = (fields[one] for one in ("heads", "kv_heads", "head_dim"))
    apart = wide["product"].unflatten(-1, (heads + 2 * shared, dim)).transpose(1, 2)
    query, key, value = apart.split([heads, shared, shared], 1)

    def turned(x):
        a, b = x.chunk(2, -1)
        cos, sin = wide["cos"][:, None], wide["sin"][:, None]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    return {"query": turned(query), "key": turned(key), "value": value}


def worst_error(found, wanted):
    """Largest difference of any output, in what rounding and float32 arithmetic allow: not above 1."""
    worst = 0.0
    for name, want in wanted.items():
        assert found[name].shape == want.shape, name
        got = found[name].double()
        assert got.isfinite().all(), f"{name} has numbers that are not finite"
        allowed = ROUNDOFF[found[name].dtype] * want.abs() + ARITHMETIC * want.abs().max() + SMALLEST
        worst = max(worst, ((got - want).abs() / allowed).max().item())
    return worst


def results_like(name, ports, wanted, shift=0):
    """Memory for results, full of what is not a number."""
    first, found = ports[FUSIONS[name].inputs[0]], {}
    for port, x in wanted.items():
        dtype = torch.float32 if port in FUSIONS[name].wide else first.dtype
        found[port] = first.new_full((x.numel() + shift,), torch.nan, dtype=dtype)[shift:].view(x.shape)
    return found


# Operator, shape of its first operand, fields. Some widths are no multiple of 16 bytes, and one is such
# that a block has too few threads for.
EPSILON = {"epsilon": 1e-5}
FREQUENCIES = 33
CASES = [
    *((ADD_RMS_NORM.name, shape, EPSILON) for shape in ((2, 3, 64), (1, 1, 576), (3, 7))),
    *((RMS_NORM.name, shape, EPSILON) for shape in ((2, 3, 64), (1, 1, 576), (3, 7))),
    (ADD_RMS_NORM.name, (1, 2, 9000), {"epsilon": 1e-6}),
    (RMS_NORM.name, (2, 4, 3, 8), {"epsilon": 1e-6}),
    (ROTARY_HEADS.name, (2, 3, 12 * 16), {"heads": 4, "kv_heads": 4, "head_dim": 16}),
    (ROTARY_HEADS.name, (3, 5, 15 * 64), {"heads": 9, "kv_heads": 3, "head_dim": 64}),
    (ROTARY_HEADS.name, (2, 3, 8 * 6), {"heads": 6, "kv_heads": 1, "head_dim": 6}),
    *((GATED_UNIT.name, (2, 3, 96), {"activation": one}) for one in ACTIVATIONS),
    (GATED_UNIT.name, (5, 2 * 1536), {"activation": "silu"}),
    (GATED_UNIT.name, (2, 3, 14), {"activation": "silu"}),
    (GATED_UNIT.name, (2, 24), {"activation": "silu"}),
    (ROTARY_TABLE.name, (2, 5), {}),
]  # fmt: skip
