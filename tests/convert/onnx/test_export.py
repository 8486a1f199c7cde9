"""Export of a whole artifact: files, manifest, refusals that leave nothing behind."""

import hashlib
import shutil

import pytest
import torch

from lineahead.convert.onnx import export as module
from lineahead.convert.onnx.export import export_onnx
from lineahead.convert.onnx.parity import Parity
from lineahead.errors import ExportError, ParityError, StorageError
from lineahead.recipes.manifest import Base, Manifest, Model, read_manifest, write_manifest

GOOD = Parity(logits=1e-6, hidden_states=1e-6, state=1e-6, worst_case="none")
BAD = Parity(logits=2e-4, hidden_states=1e-6, state=1e-6, worst_case="ragged batch")


@pytest.fixture
def artifact(tiny_artifact, tmp_path):
    folder = tmp_path / "artifact"
    shutil.copytree(tiny_artifact, folder)
    model = Model(
        vocab_size=97,
        hidden_size=32,
        layers=2,
        linear_layers=(0, 1),
        settings={},
        parameters=1,
        new_parameters=1,
        state_bytes=1,
    )
    write_manifest(folder, Manifest(base=Base(reference="tiny", model_type="llama"), recipe={}, model=model))
    return folder


@pytest.fixture
def ready(monkeypatch, traced):
    """Take the graph that was traced once."""
    monkeypatch.setattr(module, "_trace", lambda _, path, __: shutil.copy(traced, path))


@pytest.fixture
def trusting(monkeypatch, ready):
    """Skip the comparison too, which has tests of its own."""
    monkeypatch.setattr(module, "compare_in_subprocess", lambda *_, **__: GOOD)


@pytest.mark.slow
def test_export_is_checked_in_a_fresh_process(artifact, ready):
    told = []
    (record,) = export_onnx(artifact, precisions=["fp32"], progress=told.append)
    assert record.parity["logits"] < 1e-5
    assert told == ["trace the step graph", "compare fp32 with eager in a fresh process"]


def test_all_precisions_and_the_manifest(artifact, trusting):
    records = export_onnx(artifact)
    folder = artifact / "onnx"
    names = ["verifier.onnx", "verifier_int8.onnx", "verifier_int4.onnx"]
    assert [record.file for record in records] == [f"onnx/{name}" for name in names]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    for record in records:
        content = (artifact / record.file).read_bytes()
        assert record.bytes == len(content)
        assert record.sha256 == hashlib.sha256(content).hexdigest()
        assert record.data_sha256 == ""
    export_onnx(artifact, precisions=["int4"])
    assert len(read_manifest(artifact).exports) == 3


def test_what_a_killed_export_left_behind_is_removed(artifact, trusting):
    left = artifact / "onnx" / f"{module.STAGING}killed"
    left.mkdir(parents=True)
    (left / "verifier.onnx").write_bytes(b"half")
    export_onnx(artifact, precisions=["fp32"])
    assert [path.name for path in (artifact / "onnx").iterdir()] == ["verifier.onnx"]


def test_weights_beside_the_graph_are_hashed_too(artifact, trusting, monkeypatch):
    def split(_, path, __):
        path.write_bytes(b"graph")
        path.with_name(f"{path.name}.data").write_bytes(b"weights")

    monkeypatch.setattr(module, "_trace", split)
    monkeypatch.setattr(module.onnx.checker, "check_model", lambda _: None)
    (record,) = export_onnx(artifact, precisions=["fp32"])
    assert record.bytes == len(b"graph" + b"weights")
    assert record.data_sha256 == hashlib.sha256(b"weights").hexdigest()


def test_a_mismatch_saves_nothing(artifact, ready, monkeypatch):
    monkeypatch.setattr(module, "compare_in_subprocess", lambda *_, **__: BAD)
    (artifact / "onnx").mkdir()
    (artifact / "onnx" / "verifier.onnx").write_bytes(b"old")
    with pytest.raises(ParityError, match=r"differs from eager by 2.0e-04 in 'ragged batch'"):
        export_onnx(artifact, precisions=["fp32"])
    assert [path.name for path in (artifact / "onnx").iterdir()] == ["verifier.onnx"]
    assert (artifact / "onnx" / "verifier.onnx").read_bytes() == b"old"
    assert read_manifest(artifact).exports == ()


def test_too_coarse_a_quantisation_is_refused():
    coarse = Parity(logits=0, hidden_states=0, state=0, worst_case="none", rounding=0.5)
    with pytest.raises(ParityError, match="changes a weight matrix by 50%"):
        module.check(coarse, "int4", "verifier_int4.onnx")


def test_not_a_number_is_a_mismatch():
    with pytest.raises(ParityError):
        module.check(Parity(logits=float("nan"), hidden_states=0, state=0, worst_case="x"), "fp32", "g")


def test_a_full_disk_leaves_no_file(artifact, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "trace", lambda *_, **__: None)
    monkeypatch.setattr(module, "save", full)
    with pytest.raises(StorageError, match="no space left"):
        export_onnx(artifact, precisions=["fp32"])
    assert list((artifact / "onnx").iterdir()) == []


def test_an_exporter_that_fails_is_one_line(artifact, monkeypatch):
    def fail(*_, **__):
        raise torch.onnx.OnnxExporterError("step 1/3") from ValueError("no such operator\nand a long report")

    monkeypatch.setattr(module, "trace", fail)
    with pytest.raises(ExportError, match=r"torch\.onnx\.export failed on .*: no such operator$"):
        export_onnx(artifact, precisions=["fp32"])
    assert list((artifact / "onnx").iterdir()) == []


def test_unknown_precision_is_refused(artifact):
    with pytest.raises(ExportError, match="unknown precision 'int2'"):
        export_onnx(artifact, precisions=["int2"])
