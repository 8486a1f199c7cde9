"""`lineahead export tensorrt` of an artifact with a draft: files and records; building is a stand-in."""

import json
from types import SimpleNamespace

import pytest

from lineahead.convert.tensorrt import export
from lineahead.convert.tensorrt.draft_graph import draft_graph
from lineahead.convert.tensorrt.graph import engine_graph, save_for_check
from lineahead.errors import BackendError, ParityError
from lineahead.plugins.tensorrt.draft import read_names
from lineahead.plugins.tensorrt.draft_kernels import LibraryDraftKernels
from lineahead.plugins.tensorrt.record import DRAFT, Bucket, Machine, read_record

MACHINE = Machine(sm="sm_90", tensorrt="8.6.1", card="a card")


@pytest.fixture
def building(drafting, tensorrt_fakes, tmp_path, monkeypatch):
    """Exporting with an engine that is ONNX Runtime; collects the build requests."""
    device, library, requests = tensorrt_fakes.Device(), tmp_path / "library.so", []
    library.write_bytes(b"plugins")
    trt = SimpleNamespace(__version__="8.6.1")

    def build(trt, log, request, report):
        requests.append(request)
        return b"plan"

    def engine(plan, device, *, trt, log):
        request = requests[-1]
        source = drafting / "onnx" / "verifier.onnx"
        if request.graph.name.startswith(DRAFT):
            model = draft_graph(drafting / "onnx" / "draft.onnx", request.precision)[0]
        else:
            model = engine_graph(source, request.precision)
        save_for_check(model, tmp_path / "engine.onnx")
        return tensorrt_fakes.Engine(tmp_path / "engine.onnx", device)

    stand_ins = {
        "tensorrt_module": lambda: trt,
        "CudaDevice": lambda: device,
        "this_machine": lambda trt, device: MACHINE,
        "plugin_library": lambda trt, given: library,
        "load_plugins": lambda trt, path: None,
        "LibraryDraftKernels": lambda path: None,
        "trt_logger": lambda trt: None,
        "read_manifest": lambda artifact: SimpleNamespace(model=SimpleNamespace(max_position=160)),
        "build": build,
        "TensorRTEngine": engine,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(export, name, stand_in)
    return requests


OPTIONS = export.Options(buckets=("1x1", "1x8", "2x4"))


def test_an_artifact_with_a_draft_gets_an_engine_of_it(drafting, building, monkeypatch, tmp_path):
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    (artifact / "onnx").symlink_to(drafting / "onnx")
    found = export.export_tensorrt(artifact, precisions=("fp16",), options=OPTIONS)
    folder = artifact / "tensorrt" / MACHINE.folder
    assert [one["engine"] for one in found] == [
        str(folder / f"{kind}_fp16.engine") for kind in ("verifier", "draft")
    ]
    record = read_record(folder / "draft_fp16.json")
    assert (record.kind, record.buckets) == (
        DRAFT,
        (Bucket(batch=1, nodes=1, results=1), Bucket(batch=2, nodes=1, results=1)),
    )
    assert 0 < record.difference < 1e-2
    assert read_names(folder / "draft_fp16.engine", 200, 300).tolist() == list(range(2, 202))
    assert {path.name for path in folder.iterdir()} >= {"draft_fp16.onnx", "verifier_fp16.engine"}
    assert not [path for path in folder.iterdir() if path.is_dir()]
    assert "input_ids:1 " in found[1]["trtexec"].replace(",", " ") + " "
    assert "hidden_states:1x32" in found[1]["trtexec"]
    json.dumps(found)


def test_a_library_without_the_drafts_kernels_is_refused_before_anything_is_built(
    drafting, building, tmp_path, monkeypatch
):
    (tmp_path / "onnx").symlink_to(drafting / "onnx")
    monkeypatch.setattr(export, "LibraryDraftKernels", LibraryDraftKernels)
    with pytest.raises(BackendError, match="no kernels of drafts"):
        export.export_tensorrt(tmp_path, precisions=("fp32",), options=OPTIONS)
    assert building == []


def test_without_a_draft_or_with_no_draft_there_is_none(drafting, artifact, building, tmp_path):
    for number, (source, draft) in enumerate(((drafting, False), (artifact, True))):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "onnx").symlink_to(source / "onnx")
        options = export.Options(buckets=("1x1", "1x8"), draft=draft)
        (found,) = export.export_tensorrt(folder, precisions=("fp32",), options=options)
        assert found["engine"].endswith("verifier_fp32.engine")


def test_a_draft_engine_that_differs_is_not_kept_but_its_verifier_is(
    drafting, building, tmp_path, monkeypatch
):
    (tmp_path / "onnx").symlink_to(drafting / "onnx")
    monkeypatch.setattr(export, "compare_draft", lambda *_: (0.0001, 0.5))
    with pytest.raises(ParityError, match=r"draft_fp32.engine: only 50% of the best candidates"):
        export.export_tensorrt(tmp_path, precisions=("fp32",), options=OPTIONS)
    names = {path.name for path in (tmp_path / "tensorrt" / MACHINE.folder).iterdir()}
    assert "verifier_fp32.engine" in names
    assert not [one for one in names if one.startswith(DRAFT)]
