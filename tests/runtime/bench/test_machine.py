"""What a measurement says of its machine and its graph."""

from types import SimpleNamespace

import pytest

from lineahead.errors import ArtifactError
from lineahead.plugins.tensorrt.record import EngineRecord, Machine
from lineahead.runtime.bench.machine import graph_bytes

MINE = Machine(sm="sm_90", tensorrt="8.6.1")


def artifact(folder):
    return SimpleNamespace(
        folder=folder, graph=lambda precision: folder / "onnx" / f"verifier_{precision}.onnx"
    )


@pytest.mark.parametrize("outside", [0, 700])
def test_a_graph_is_counted_with_its_weights(tmp_path, outside):
    engines, graphs = tmp_path / "tensorrt" / "sm_90-8.6.1", tmp_path / "onnx"
    for folder in (engines, graphs):
        folder.mkdir(parents=True)
    (engines / "verifier_fp16.engine").write_bytes(b"x" * 1000)
    (engines / "weights_fp16.safetensors").write_bytes(b"x" * outside)
    weights = "weights_fp16.safetensors" if outside else ""
    record = EngineRecord(
        kind="verifier", precision="fp16", sm="sm_90", tensorrt="8.6.1", card="", plugin_sha256="",
        graph_sha256="", buckets=(), weights=weights,
    )  # fmt: skip
    record.write(engines / "verifier_fp16.json")
    for folder, size in ((engines, 3), (graphs, 50)):
        (folder / "verifier_fp16.onnx").write_bytes(b"x" * size)
        (folder / "verifier_fp16.onnx.data").write_bytes(b"x" * size * 10)
    assert graph_bytes(artifact(tmp_path), "fp16", MINE) == 33 + outside
    assert graph_bytes(artifact(tmp_path), "fp16") == 550


def test_engines_of_another_machine_do_not_count(tmp_path):
    other = tmp_path / "tensorrt" / "sm_80-8.6.1"
    other.mkdir(parents=True)
    (other / "verifier_fp16.engine").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="no fp16 engine"):
        graph_bytes(artifact(tmp_path), "fp16", MINE)


def test_an_engine_that_is_missing_is_named(tmp_path):
    with pytest.raises(ArtifactError, match="no fp16 engine"):
        graph_bytes(artifact(tmp_path), "fp16", MINE)
