"""The fused operators of the plugin library as TensorRT uses them, on a CPU.

TENSORRT_ROOT and TENSORRT_LEAN are those of the attention's test of this name.
"""

import ctypes

import pytest
import torch
from fusion_cases import CASES, expected, ports_of, results_like, worst_error
from fusion_plugin import FusionLibrary
from operator_plugin_call import DATA_TYPES, RefusedError

from lineahead.plugins import library as plugin_library
from lineahead.plugins.step_fusions.schema import FUSIONS, OWN_FIELDS, description

TYPES = (torch.float32, torch.float16, torch.bfloat16)
LINEAR, CHW4 = 0, 1
PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
FIRST = {name: next(case for case in CASES if case[0] == name) for name in FUSIONS}


@pytest.fixture(scope="module")
def plugins(built_plugins):
    return built_plugins(FusionLibrary)


def test_the_library_says_what_the_schema_says(plugins):
    assert plugin_library.describe(plugins.path)["fusions"] == description()


@pytest.mark.parametrize("name", FUSIONS)
def test_fields_are_announced_by_name_and_type(name, plugins):
    plugins.choose(name)
    kinds = {1: "float", 5: "int", 6: "string"}
    count = plugins.c.field_count()
    fields = {plugins.c.field_name(i).decode(): kinds[plugins.c.field_type(i)] for i in range(count)}
    assert fields == FUSIONS[name].fields | OWN_FIELDS


@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{name}-{shape}" for name, shape, _ in CASES])
def test_a_call_after_serialization(case, plugins):
    """Serialized, read back, attached and enqueued; outputs have the shapes that were announced."""
    name, shape, fields = CASES[case]
    dtype = TYPES[case % (3 if plugins.major >= 10 else 2)]
    plugins.choose(name)
    first = plugins.create(fields)
    second = plugins.reload(first)
    attached = plugins.attach(second)
    ports = ports_of(name, shape, fields=fields, dtype=dtype, seed=case)
    wanted = expected(name, ports, fields)
    out = results_like(name, ports, wanted)
    assert plugins.output_shapes(attached, ports) == {port: tuple(x.shape) for port, x in wanted.items()}
    plugins.run(attached, ports, out)
    assert worst_error(out, wanted) <= 1
    for one in (first, second, attached):
        plugins.c.destroy(one)


def kind_of(port, fusion, own):
    """Type of a port of an operator whose first floating-point port has type `own`."""
    return "int32" if port in fusion.integers else "float32" if port in fusion.wide else own


@pytest.mark.parametrize("name", FUSIONS)
def test_types_of_ports(name, plugins):
    """All types of each port, against those of the first."""
    plugins.choose(name)
    plugin, fusion = plugins.create(FIRST[name][2]), FUSIONS[name]
    inputs, outputs = len(fusion.inputs), len(fusion.outputs)
    known = [one for one in DATA_TYPES if plugins.major >= 10 or DATA_TYPES[one] < DATA_TYPES["bfloat16"]]
    floats = ("float32", "float16", "bfloat16")[: 3 if plugins.major >= 10 else 2]
    for own in floats:
        for place in range(inputs + outputs):
            port = (*fusion.inputs, *fusion.outputs)[place]
            allowed = {"float32"} if port in fusion.wide else {own} if place else set(floats)
            if port in fusion.integers:
                allowed = {"int32"}
            for kind in known:
                for layout in (LINEAR, CHW4):
                    types, formats = ([one] * (inputs + outputs) for one in (DATA_TYPES[own], LINEAR))
                    types[place], formats[place] = DATA_TYPES[kind], layout
                    given = ((ctypes.c_int * len(types))(*one) for one in (types, formats))
                    said = plugins.c.is_supported(plugin, place, *given, inputs, outputs)
                    assert bool(said) == (kind in allowed and layout == LINEAR), (name, place, kind, own)
        given, made = (
            [DATA_TYPES[kind_of(port, fusion, own)] for port in ports]
            for ports in (fusion.inputs, fusion.outputs)
        )
        assert plugins.output_types(plugin, given) == made
    zeros = (ctypes.c_int * (inputs + outputs + 1))()
    assert not plugins.c.is_supported(plugin, 0, zeros, zeros, inputs + 1, outputs)
    assert plugins.c.output_count(plugin) == outputs
    plugins.c.destroy(plugin)


@pytest.mark.parametrize("name", [name for name, one in FUSIONS.items() if not one.integers])
def test_a_precision_leaves_one_type(name, plugins):
    plugins.choose(name)
    fusion = FUSIONS[name]
    count = len(fusion.inputs) + len(fusion.outputs)
    for precision, only in PRECISIONS.items():
        if precision == "bf16" and plugins.major < 10:
            with pytest.raises(RefusedError, match="no precision 'bf16'"):
                plugins.create(FIRST[name][2] | {"precision": precision})
            continue
        first = plugins.create(FIRST[name][2] | {"precision": precision})
        plugin = plugins.reload(first)
        for kind in PRECISIONS.values():
            if kind == "bfloat16" and plugins.major < 10:
                continue
            types = (ctypes.c_int * count)(*[DATA_TYPES[kind]] * count)
            formats = (ctypes.c_int * count)(*[LINEAR] * count)
            said = plugins.c.is_supported(plugin, 0, types, formats, len(fusion.inputs), len(fusion.outputs))
            assert bool(said) == (kind == only), (precision, kind)
        plugins.c.destroy(first)
        plugins.c.destroy(plugin)


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("AddRMSNorm", {"epsilon": -1.0}, "epsilon is negative"),
        ("RMSNorm", {"epsilon": float("nan")}, "'epsilon' is not a number"),
        ("RMSNorm", {"gain": 1}, "no field 'gain'"),
        ("RotaryHeads", {"head_dim": 7}, "out of range"),
        ("RotaryHeads", {"heads": 0}, "out of range"),
        ("GatedUnit", {"activation": "relu"}, "no activation 'relu'"),
        ("RMSNorm", {"precision": "int8"}, "no precision 'int8'"),
    ],
)
def test_bad_fields_are_named(name, changed, message, plugins):
    plugins.choose(name)
    with pytest.raises(RefusedError, match=f"{name} 'node': .*{message}"):
        plugins.create(FIRST[name][2] | changed)


@pytest.mark.parametrize("name", FUSIONS)
def test_a_missing_field_is_named(name, plugins):
    plugins.choose(name)
    for field in FUSIONS[name].fields:
        with pytest.raises(RefusedError, match=f"'{field}' is missing"):
            plugins.create({key: value for key, value in FIRST[name][2].items() if key != field})


@pytest.mark.parametrize(
    ("name", "port", "message"),
    [
        ("AddRMSNorm", "residual", r"residual has shape \[3, 4, 65\], not \[2, 3, 64\]"),
        ("AddRMSNorm", "weight", r"weight has shape \[65\], not \[64\]"),
        ("RotaryHeads", "product", r"product has shape \[3, 4, 193\], not \[3, 4, 192\]"),
        ("RotaryHeads", "sin", r"sin has shape \[3, 4, 9\], not \[2, 3, 8\]"),
        ("GatedUnit", "product", "odd width"),
        ("RotaryTable", "positions", "3 axes"),
    ],
)
def test_shapes_that_do_not_fit_are_named(name, port, message, plugins):
    _, shape, fields = FIRST[name]
    plugins.choose(name)
    plugin, ports = plugins.create(fields), ports_of(name, shape, fields=fields, dtype=torch.float32)
    out = results_like(name, ports, expected(name, ports, fields))
    extra = [1] if port == "positions" else []
    ports[port] = ports[port].new_zeros([*(size + 1 for size in ports[port].shape), *extra])
    with pytest.raises(RefusedError, match=message):
        plugins.run(plugin, ports, out)
    plugins.c.destroy(plugin)
