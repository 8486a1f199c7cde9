"""Every reader on its seeds, on damaged seeds and on noise: an error of ours, or nothing."""

import contextlib
import importlib.util
import random
import sys
from pathlib import Path

import pytest

from lineahead.errors import ArtifactError, LineaheadError
from lineahead.runtime.backends.external_data import check_external_data, external_pieces

NAME = "fuzz_targets"
if NAME not in sys.modules:
    spec = importlib.util.spec_from_file_location(NAME, Path(__file__).with_name("targets.py"))
    sys.modules[NAME] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[NAME])
TARGETS, graphs = sys.modules[NAME].TARGETS, sys.modules[NAME].graphs
TIMES = 150
JSON_SPOILS = (b'""', b"null", b"[]", b"{}", b"1e999", b'"x"', b"-1", b"[[]]", b"true")


def damaged(seed: bytes, chance: random.Random) -> bytes:
    """A seed with bytes changed, cut out, doubled, or a JSON value put in."""
    data = bytearray(seed)
    for _ in range(chance.choice((1, 1, 2, 4))):
        at = chance.randrange(len(data) + 1)
        kind = chance.randrange(5)
        if kind == 0 and data:
            data[at % len(data)] = chance.randrange(256)
        elif kind == 1:
            del data[at : at + chance.choice((1, 4, 8, 64))]
        elif kind == 2:
            data[at:at] = data[at : at + chance.choice((1, 8, 32))]
        elif kind == 3:
            data[at:at] = chance.choice(JSON_SPOILS)
        else:
            data[at : at + 8] = chance.choice((b"\xff" * 8, b"\0" * 8, b"\x01" + b"\0" * 7))
    return bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_only_our_own_errors(name, tmp_path):
    chance, seeds = random.Random(name), TARGETS[name].seeds()
    inputs = [b"", b"{", b"null", b"[]", b"[1]", b'{"a": 1}', chance.randbytes(200), *seeds]
    inputs += [damaged(chance.choice(seeds), chance) for _ in range(TIMES)]
    inputs += [b"[" * 50_000, b'{"a":' * 50_000]
    refused = []
    for data in inputs:
        with contextlib.suppress(LineaheadError):
            TARGETS[name].run(data, tmp_path)
            continue
        refused.append(data)
    assert refused or name == "artifact"


def test_an_index_may_name_the_folder_itself(tmp_path):
    with pytest.raises(LineaheadError):
        TARGETS["index"].run(b'{"weight_map": {"a": ""}}', tmp_path)


@pytest.mark.parametrize("name", [name for name in TARGETS if name not in ("gguf", "artifact")])
def test_seeds_are_accepted(name, tmp_path):
    for seed in TARGETS[name].seeds():
        TARGETS[name].run(seed, tmp_path)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({"location": "/etc/passwd"}, "/etc/passwd"),
        ({"location": "../secret"}, "secret"),
        ({"location": "..\\secret"}, "secret"),
        ({"location": ""}, "''"),
        ({"location": "other.data"}, "missing"),
        ({"offset": "-5"}, "offset"),
        ({"offset": "99999999999999999999999"}, "offset"),
        ({"length": "1000"}, "which has 64"),
    ],
)
def test_weights_elsewhere_are_refused(place, message, tmp_path):
    (tmp_path / "graph.onnx.data").write_bytes(b"\0" * 64)
    path = tmp_path / "graph.onnx"
    path.write_bytes(graphs(**place)[0])
    with pytest.raises(ArtifactError, match=message):
        check_external_data(path)


def test_weights_of_nested_graphs_are_seen(tmp_path):
    import onnx
    from onnx import helper

    inner = onnx.load_from_string(graphs("deep.data")[0]).graph
    node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    model = helper.make_model(helper.make_graph([node], "g", [], []), ir_version=10)
    path = tmp_path / "graph.onnx"
    path.write_bytes(model.SerializeToString())
    assert [piece.location for piece in external_pieces(path)] == ["deep.data", "deep.data"]
