"""The plugin library as TensorRT uses it, on a CPU: over emulated kernels, with the headers that are found.

TENSORRT_ROOT names a TensorRT, or several like PATH. TENSORRT_LEAN names a folder with libnvinfer_lean.so:
the library then goes through that TensorRT's own registry.
"""

import ctypes

import pytest
import torch
from operator_kernel_cases import SETTINGS, Size, check, errors, make_case
from operator_plugin_call import (
    DATA_TYPES,
    LEAN_LIBRARY,
    LEAN_VARIABLE,
    MOST_DIMS,
    PluginLibrary,
    RefusedError,
    find_lean,
)

from lineahead.plugins import library as plugin_library
from lineahead.plugins.augmented_attention import tensorrt
from lineahead.plugins.augmented_attention.feature_maps import FEATURE_MAPS
from lineahead.plugins.augmented_attention.schema import INPUTS, OUTPUTS, AttentionSettings

TYPES = (torch.float32, torch.float16, torch.bfloat16)
SMALL = Size(dim=16, value_dim=16, nodes=3, pending=4)
LINEAR, CHW4 = 0, 1


@pytest.fixture(scope="module")
def plugins(built_plugins):
    return built_plugins(PluginLibrary)


@pytest.fixture
def plugin(plugins):
    one = plugins.create(tensorrt.attributes(SETTINGS["augmented"], 1.0))
    yield one
    plugins.c.destroy(one)


def test_the_registry_is_tensorrts_own(plugins):
    if plugins.major < 10:
        pytest.skip("there is no lean runtime of TensorRT 8.6")
    if find_lean() is None:
        pytest.skip(
            f"no {LEAN_LIBRARY}.* in the folder that {LEAN_VARIABLE} names, and no tensorrt-lean package"
        )
    assert plugins.lean == find_lean()


def test_the_library_says_what_the_schema_says(plugins):
    found = plugin_library.describe(plugins.path)
    built = found.pop("build")
    assert found == tensorrt.description()
    assert built["source_hash"] == "tested"
    assert built["interface"] == ("IPluginV3" if plugins.major >= 10 else "IPluginV2DynamicExt")


def test_fields_are_announced_by_name_and_type(plugins):
    kinds = {1: "float", 5: "int", 6: "string"}
    count = plugins.c.field_count()
    fields = {plugins.c.field_name(i).decode(): kinds[plugins.c.field_type(i)] for i in range(count)}
    assert fields == tensorrt.FIELDS


@pytest.mark.parametrize("place", range(len(INPUTS) + len(OUTPUTS)))
def test_types_of_a_port(place, plugins, plugin):
    """All types against those of query and length, which precede it."""
    inputs, outputs = len(INPUTS), len(OUTPUTS)
    source = {"output": "query", "pending_key": "key"}
    name = INPUTS[place] if place < inputs else source.get(OUTPUTS[place - inputs], OUTPUTS[place - inputs])
    allowed = tensorrt.input_types(name, plugins.major)
    known = [one for one in DATA_TYPES if plugins.major >= 10 or DATA_TYPES[one] < DATA_TYPES["bfloat16"]]
    for floats in tensorrt.input_types("query", plugins.major):
        for whole in tensorrt.input_types("length", plugins.major):
            types = [DATA_TYPES[floats]] * (inputs + outputs)
            types[INPUTS.index("length")] = DATA_TYPES[whole]
            same = {"accept_index": (whole,), "accept_count": (whole,)}.get(name, allowed)
            if allowed == tensorrt.input_types("query", plugins.major) and place:
                same = (floats,)
            for kind in known:
                for layout in (LINEAR, CHW4):
                    mine = [*types]
                    mine[place] = DATA_TYPES[kind]
                    formats = [LINEAR] * len(mine)
                    formats[place] = layout
                    given = ((ctypes.c_int * len(mine))(*one) for one in (mine, formats))
                    said = plugins.c.is_supported(plugin, place, *given, inputs, outputs)
                    assert bool(said) == (kind in same and layout == LINEAR), (name, kind, floats, whole)


def test_other_numbers_of_ports_are_refused(plugins, plugin):
    for inputs, outputs in ((len(INPUTS) - 1, len(OUTPUTS)), (len(INPUTS), len(OUTPUTS) - 1)):
        zeros = (ctypes.c_int * (inputs + outputs))()
        assert not plugins.c.is_supported(plugin, 0, zeros, zeros, inputs, outputs)


def test_shapes_and_types_of_the_outputs(plugins, plugin):
    ranks = {
        "ancestors": 3,
        "length": 1,
        "accept_index": 2,
        "accept_count": 1,
        "norm": 3,
        "alpha": 1,
        "local_scale": 1,
        "conv": 2,
    }
    ranks |= {"query_map": 3, "key_map": 3}
    axes = (ctypes.c_int * len(INPUTS))(*(ranks.get(name, 4) for name in INPUTS))

    def axis(port, index):  # every axis is of another size
        return 16 * INPUTS.index(port) + index + 1

    sizes = (ctypes.c_int64 * (len(INPUTS) * MOST_DIMS))()
    for i, name in enumerate(INPUTS):
        for index in range(axes[i]):
            sizes[i * MOST_DIMS + index] = axis(name, index)
    symbols, found = (ctypes.c_int64 * (len(OUTPUTS) * MOST_DIMS))(), (ctypes.c_int * len(OUTPUTS))()
    assert plugins.c.output_shapes(plugin, sizes, axes, len(INPUTS), symbols, found, len(OUTPUTS)) == 0
    assert plugins.c.output_count(plugin) == len(OUTPUTS)

    want = {name: [axis(name, i) for i in range(ranks.get(name, 4))] for name in OUTPUTS if name != "output"}
    want |= {"pending_key": [axis("key", i) for i in range(4)]}
    want |= {"output": [axis("query", 0), axis("query", 1), axis("query", 2), axis("value", 3)]}
    for i, name in enumerate(OUTPUTS):
        assert list(symbols[i * MOST_DIMS : i * MOST_DIMS + found[i]]) == want[name], name
    types = (ctypes.c_int * len(INPUTS))(*(DATA_TYPES["float16"] for _ in INPUTS))
    types[INPUTS.index("state")] = types[INPUTS.index("norm")] = DATA_TYPES["float32"]
    made = (ctypes.c_int * len(OUTPUTS))()
    assert plugins.c.output_types(plugin, types, len(INPUTS), made, len(OUTPUTS)) == 0
    wide = {name: "float32" if name in ("state", "norm") else "float16" for name in OUTPUTS}
    assert list(made) == [DATA_TYPES[wide[name]] for name in OUTPUTS]


@pytest.mark.parametrize("name", SETTINGS)
def test_the_state_that_exists_is_aliased(name, plugins):
    if plugins.major < 10:
        pytest.skip("aliasing came with TensorRT 10.3")
    one = plugins.create(tensorrt.attributes(SETTINGS[name], 1.0))
    assert plugins.aliases(one) == tensorrt.aliases(SETTINGS[name])
    plugins.c.destroy(one)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("in_place", [False, True])
def test_a_call_is_the_step_in_double_precision(name, in_place, plugins, monkeypatch):
    """Serialized, read back, attached and enqueued; trees of two ragged sequences, of every type in turn."""
    turn = list(SETTINGS).index(name) + in_place
    monkeypatch.setenv("EMULATED_ORDER", str(turn))
    size = Size(nodes=(5, 1)[turn % 2], length=(70, 63), pending=(6, 0, 3)[turn % 3], dim=16, value_dim=16)
    if in_place and plugins.major < 10:
        pytest.skip("aliasing came with TensorRT 10.3")
    dtype = TYPES[turn % (3 if plugins.major >= 10 else 2)]
    index = (torch.int64, torch.int32)[turn // 2 % 2]
    check(plugins, SETTINGS[name], size, dtype=dtype, seed=turn, index=index, in_place=in_place)


@pytest.mark.parametrize("name", ["softmax-hedgehog", "augmented"])
def test_a_long_chain_is_prefilled(name, plugins):
    """More nodes than one call of the other kernels can have; then a tree that commits them."""
    sizes = {"dim": 64, "value_dim": 64, "batch": 1, "heads": 2, "kv_heads": 1}
    for nodes, pending, chain in ((320, 0, True), (5, 320, False)):
        size = Size(nodes=nodes, pending=pending, accepts=pending, length=(70,), **sizes)
        check(plugins, SETTINGS[name], size, dtype=torch.float16, chain=chain)


def test_contexts_have_counters_of_their_own(plugins, plugin):
    """Calls of two contexts in turn, unannounced and growing."""
    settings = SETTINGS["augmented"]
    contexts = [plugins.attach(plugin) for _ in range(2)]
    for turn, batch in enumerate((1, 1, 40, 2)):
        ports = make_case(
            settings,
            Size(batch=batch, dim=8, value_dim=8, nodes=1, pending=1),
            dtype=torch.float32,
            seed=turn,
        )
        out = {name: torch.full_like(ports.get(name, ports["query"]), torch.nan) for name in OUTPUTS}
        plugins.enqueue(contexts[turn % 2], ports, out, announced=False)
        assert max(errors(out, ports, settings, 1.0).values()) < 3e-5
    for one in contexts:
        plugins.c.destroy(one)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_precision_leaves_one_type(precision, plugins):
    """Of the query, whose type all float ports share; TensorRT 8.6 would choose by itself."""
    plugin = plugins.create(tensorrt.attributes(SETTINGS["augmented"], 1.0, precision=precision))
    count = len(INPUTS) + len(OUTPUTS)
    said = {}
    for name in ("fp32", "fp16"):
        types = [DATA_TYPES["float32" if name == "fp32" else "float16"]] * count
        types[INPUTS.index("length")] = DATA_TYPES["int32"]
        given = ((ctypes.c_int * count)(*one) for one in (types, [LINEAR] * count))
        said[name] = bool(plugins.c.is_supported(plugin, 0, *given, len(INPUTS), len(OUTPUTS)))
    assert said == {name: name == precision for name in said}
    plugins.c.destroy(plugin)


def test_scalars_serve_all_heads(plugins):
    """alpha and local_scale of one element."""
    settings = SETTINGS["augmented"]
    ports = make_case(settings, SMALL, dtype=torch.float32)
    ports |= {name: ports[name][:1].clone() for name in ("alpha", "local_scale")}
    out = plugins.step(ports, settings, 1.0)
    whole = ports | {name: ports[name].expand(SMALL.heads) for name in ("alpha", "local_scale")}
    assert errors(out, whole, settings, 1.0)["output"] < 3e-5


FIELDS = tensorrt.attributes(SETTINGS["augmented"], 1.0)


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in tensorrt.OWN_FIELDS])
def test_a_missing_field_is_named(name, plugins):
    with pytest.raises(RefusedError, match=f"'{name}' is missing"):
        plugins.create({key: value for key, value in FIELDS.items() if key != name})


@pytest.mark.parametrize(
    ("changed", "kinds", "message"),
    [
        ({"feature_map": "linformer"}, {}, "no feature_map 'linformer'"),
        ({"local": "squares"}, {}, "no local 'squares'"),
        ({"normalizer": ""}, {}, "no normalizer ''"),
        ({"causal": 0}, {}, "is causal"),
        ({"window": 0}, {}, "out of range"),
        ({"window": "64"}, {}, "'window' is not a integer"),
        ({"local": 1}, {"local": "int"}, "'local' is not a string"),
        ({"window": 1.5}, {"window": "float"}, "'window' is not a integer"),
        ({"eps": float("inf")}, {}, "'eps' is not a number"),
        ({"decay": 1}, {}, "no field 'decay'"),
        ({"precision": "int8"}, {}, "no precision 'int8'"),
    ],
)
def test_bad_fields_are_named(changed, kinds, message, plugins):
    with pytest.raises(RefusedError, match=message):
        plugins.create(FIELDS | changed, kinds)


def test_fields_as_other_numbers_and_without_the_optional(plugins):
    wide = {"eps": "float64", "scale": "float64"} | ({"window": "int64"} if plugins.major >= 10 else {})
    given = {name: value for name, value in FIELDS.items() if name not in tensorrt.OWN_FIELDS}
    given |= {"plugin_version": "1"}
    plugins.c.destroy(plugins.create(given, wide))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "'local' is missing"),
        (b"nonsense", "does not know"),
        (b"window=many\n", "'window=many' that is not a integer"),
    ],
)
def test_damaged_engines_are_refused(data, message, plugins):
    if plugins.major >= 10:
        pytest.skip("TensorRT 10 serializes the fields itself")
    with pytest.raises(RefusedError, match=message):
        plugins.made(plugins.c.from_bytes(data, len(data)))


@pytest.mark.parametrize(
    "port", ["key", "ancestors", "accept_index", "state", "window_value", "pending_value", "conv", "alpha"]
)
def test_shapes_that_do_not_fit_are_named(port, plugins, plugin):
    ports = make_case(SETTINGS["augmented"], SMALL, dtype=torch.float32)
    ports[port] = torch.zeros([size + 1 for size in ports[port].shape], dtype=ports[port].dtype)
    out = {name: torch.empty_like(ports.get(name, ports["query"])) for name in OUTPUTS}
    with pytest.raises(RefusedError, match=f"{port} has shape"):
        plugins.enqueue(plugin, ports, out, announced=False)
    if plugins.major >= 10:
        with pytest.raises(RefusedError, match=f"{port} has shape"):
            plugins.enqueue(plugin, ports, out)


def test_the_floor_of_denominators_is_the_settings_own(plugins, monkeypatch):
    """The library computes the one setting that is derived from others; tiny denominators show it."""
    maps = [name for name in FEATURE_MAPS if FEATURE_MAPS.named(name).floor]
    assert maps == ["rfa"]
    settings = SETTINGS["rfa"]
    assert settings.floor > 0
    ports = make_case(settings, SMALL, dtype=torch.float32)
    ports["norm"].zero_()
    scale = SMALL.dim**-0.5
    out = plugins.step(ports, settings, scale)
    assert errors(out, ports, settings, scale)["output"] < 3e-5


def test_an_attribute_is_a_field_of_the_settings():
    settings = AttentionSettings(window=8)
    assert list(tensorrt.attributes(settings, 0.5, chain=True)) == list(tensorrt.FIELDS)
    assert tensorrt.attributes(settings, 0.5, chain=True)["chain"] == 1
