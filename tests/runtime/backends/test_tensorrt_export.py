"""`lineahead export tensorrt` of an artifact with a draft: files and records; building is a stand-in."""

import json
import subprocess
import sys
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from lineahead.convert.tensorrt import export
from lineahead.convert.tensorrt.draft_graph import draft_graph
from lineahead.convert.tensorrt.graph import engine_graph, save_for_check
from lineahead.convert.tensorrt.outside import save_weights, take_out
from lineahead.errors import ArtifactError, BackendError, ParityError
from lineahead.plugins.tensorrt.choice import LibraryChoice
from lineahead.plugins.tensorrt.draft import read_names
from lineahead.plugins.tensorrt.draft_kernels import LibraryDraftKernels
from lineahead.plugins.tensorrt.engine import Tensor
from lineahead.plugins.tensorrt.loading import earlier_record, shared_weights
from lineahead.plugins.tensorrt.record import DRAFT, Bucket, EngineRecord, Machine, read_record
from lineahead.plugins.tensorrt.weights import require_weights, upload_weights
from lineahead.runtime.artifact import read_artifact
from lineahead.runtime.backends.tensorrt import TensorRTSession, export_engine
from lineahead.runtime.backends.trt_steps import Served
from lineahead.runtime.generate import Generator
from lineahead.runtime.sampling import SamplingParams
from lineahead.runtime.tokenizer import Tokenizer

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
        "LibraryChoice": lambda path: None,
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


@pytest.mark.parametrize(
    ("kernels", "message"),
    [(LibraryDraftKernels, "no kernels of drafts"), (LibraryChoice, "no kernels that choose tokens")],
)
def test_a_library_without_kernels_is_refused_before_anything_is_built(
    drafting, building, tmp_path, monkeypatch, kernels, message
):
    (tmp_path / "onnx").symlink_to(drafting / "onnx")
    monkeypatch.setattr(export, kernels.__name__, kernels)
    with pytest.raises(BackendError, match=message):
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


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_weights_outside_are_one_file_that_engines_read(
    drafting, building, tensorrt_fakes, tmp_path, monkeypatch, precision
):
    device, taken = tensorrt_fakes.Device(), {}

    def engine(plan, _, *, trt, log):
        """What was parsed, in ONNX Runtime, its weights as inputs."""
        request = building[-1]
        source, chain = tmp_path / "onnx" / "verifier.onnx", "prefill" in request.graph.name
        model = engine_graph(source, precision, chain=chain, fused=precision == "fp16")
        taken[request.graph.name] = set(take_out(model.graph, least=256))
        save_for_check(model, tmp_path / f"{request.graph.name}.check.onnx")
        return tensorrt_fakes.Engine(tmp_path / f"{request.graph.name}.check.onnx", device)

    (tmp_path / "onnx").symlink_to(drafting / "onnx")
    monkeypatch.setattr(export, "TensorRTEngine", engine)
    monkeypatch.setattr(export, "CudaDevice", lambda: device)
    monkeypatch.setattr(export, "take_out", lambda graph: take_out(graph, least=256))
    options = export.Options(buckets=("1x1", "1x8"), prefill=("1x16",), draft=False, outside=True)
    export.export_tensorrt(tmp_path, precisions=(precision,), options=options)
    folder = tmp_path / "tensorrt" / MACHINE.folder
    records = [read_record(folder / f"{kind}_{precision}.json") for kind in ("verifier", "prefill")]
    assert {one.weights for one in records} == {f"weights_{precision}.safetensors"}
    assert records[0].difference < {"fp32": 1e-5, "fp16": 2e-2}[precision]
    assert len(taken) == 2
    assert len({frozenset(names) for names in taken.values()}) == 1
    with safe_open(folder / records[0].weights, "np") as file:
        assert set(file.keys()) == taken[f"verifier_{precision}.onnx"]
    graph = ir.load(folder / f"verifier_{precision}.onnx")
    assert {value.name for value in graph.graph.inputs} >= taken[f"verifier_{precision}.onnx"]
    engines = [
        tensorrt_fakes.Engine(tmp_path / f"{kind}_{precision}.onnx.check.onnx", device)
        for kind in ("verifier", "prefill")
    ]
    weights = shared_weights([(one, folder) for one in records], engines, device)
    assert weights[0] == weights[1]
    session = TensorRTSession(
        [
            Served(engine=one, buckets=record.buckets, chain=chain, weights=addresses)
            for one, record, addresses, chain in zip(engines, records, weights, (False, True), strict=True)
        ],
        device,
        identity=lambda: "x",
        choice=tensorrt_fakes.Choice(),
    )
    found = read_artifact(drafting)
    plain = Generator(found, session, Tokenizer(found.folder))
    wanted = Generator.load(drafting)
    params = SamplingParams(max_tokens=24, ignore_eos=True)
    for text in ("abcabcabcabc" * 3, "x"):
        texts = [one.generate([text], params)[0].tokens for one in (wanted, plain)]
        assert texts[0] == texts[1] if precision == "fp32" else len(texts[1]) == 24


def test_weights_that_no_engine_reads_any_longer_are_removed(drafting, building, tmp_path, monkeypatch):
    (tmp_path / "onnx").symlink_to(drafting / "onnx")
    monkeypatch.setattr(export, "upload_weights", lambda path, tensors, device: {})
    folder, kept = tmp_path / "tensorrt" / MACHINE.folder, []
    for outside, prefill in ((True, ("1x16",)), (False, ()), (False, ("1x16",))):
        options = export.Options(buckets=("1x1", "1x8"), prefill=prefill, draft=False, outside=outside)
        export.export_tensorrt(tmp_path, precisions=("fp32",), options=options)
        kept.append((folder / "weights_fp32.safetensors").is_file())
    assert kept == [True, True, False]


def test_weights_of_another_graph_are_refused(tmp_path):
    path = tmp_path / "weights_fp16.safetensors"
    with pytest.raises(ArtifactError, match="cannot be read"):
        require_weights(path, "abc")
    save_weights({"weight.a": ir.tensor(np.zeros((2, 2), np.float16))}, path, graph_sha256="abc")
    require_weights(path, "abc")
    with pytest.raises(ArtifactError, match="of another ONNX graph"):
        require_weights(path, "abd")


def test_bfloat16_weights_are_read_by_numpy_alone(tmp_path):
    path = tmp_path / "weights_bf16.safetensors"
    numbers = ir.tensor(np.array([[1.5, -2], [3, 0]], ml_dtypes.bfloat16))
    save_weights({"weight.a": numbers}, path, graph_sha256="x")
    script = """
import sys
import numpy as np
from lineahead.plugins.tensorrt.engine import Tensor
from lineahead.plugins.tensorrt.weights import upload_weights
class Device:
    allocate = staticmethod(lambda size: size)
    synchronize = staticmethod(lambda: None)
    upload = staticmethod(lambda address, array: print(array.view(np.uint16).tolist()))
tensor = Tensor(name="weight.a", dtype="bfloat16", shape=(2, 2), is_input=True)
upload_weights(sys.argv[1], {tensor.name: tensor}, Device)
assert "ml_dtypes" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[0x3FC0, 0xC000], [0x4040, 0]]


def test_rebuilding_goes_by_how_it_was_built(tmp_path, monkeypatch):
    record = EngineRecord(
        kind="verifier", precision="fp16", sm="sm_80", tensorrt="8.6.1", card="", plugin_sha256="",
        graph_sha256="", buckets=(Bucket(batch=2, nodes=5, results=5),), weights="weights_fp16.safetensors",
    )  # fmt: skip
    commands = []
    done = SimpleNamespace(returncode=0)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command) or done)
    assert earlier_record(tmp_path, MACHINE, "fp16") is None
    folder = tmp_path / "tensorrt" / "sm_80-8.6.1"
    folder.mkdir(parents=True)
    record.write(folder / "verifier_fp16.json")
    assert earlier_record(tmp_path, MACHINE, "fp16") == record
    export_engine(tmp_path, "fp16", record)
    export_engine(tmp_path, "fp16")
    assert commands[0][-3:] == ["--bucket", "2x5", "--outside"]
    assert commands[1][-2:] == ["--precision", "fp16"]


def test_weights_that_are_missing_or_others_are_named(tensorrt_fakes, tmp_path):
    device, path = tensorrt_fakes.Device(), tmp_path / "weights_fp16.safetensors"
    tensor = Tensor(name="weight.a", dtype="float16", shape=(2, 3), is_input=True)
    with pytest.raises(ArtifactError, match="cannot be read"):
        upload_weights(path, {tensor.name: tensor}, device)
    for weights in ({"weight.b": np.zeros((2, 3), np.float16)}, {"weight.a": np.zeros((3, 2), np.float16)}):
        save_file(weights, path)
        with pytest.raises(ArtifactError, match=r"no weight.a of float16 \[2, 3\]"):
            upload_weights(path, {tensor.name: tensor}, device)
    path.write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match="cannot be read"):
        upload_weights(path, {tensor.name: tensor}, device)


def test_what_is_left_open_depends_on_tensorrts_version(drafting, building, tmp_path, monkeypatch):
    (tmp_path / "onnx").symlink_to(drafting / "onnx")
    cases = (("8.6.1", "fp16", 1, True), ("8.6.1", "fp32", 1, False), ("10.13.0", "fp16", 3, False))
    for version, precision, level, fused in cases:
        trt = SimpleNamespace(__version__=version)
        monkeypatch.setattr(export, "tensorrt_module", lambda trt=trt: trt)
        export.export_tensorrt(tmp_path, precisions=(precision,), options=OPTIONS)
        assert building[-1].optimization_level == level
        graph = ir.load(tmp_path / "tensorrt" / MACHINE.folder / f"verifier_{precision}.onnx")
        assert any(node.op_type == "AddRMSNorm" for node in graph.graph) == fused
