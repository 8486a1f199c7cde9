"""The draft's graph for an engine, what judges it, its names, its bench; ONNX Runtime behind the engine."""

import numpy as np
import onnx_ir as ir
import pytest

from lineahead.convert.tensorrt.draft_check import compare_draft, require_agreement
from lineahead.convert.tensorrt.draft_graph import draft_graph, is_recurrent
from lineahead.convert.tensorrt.graph import engine_graph, save_for_check
from lineahead.errors import ArtifactError, ExportError, ParityError
from lineahead.plugins.tensorrt.draft import names_path, read_names, write_names
from lineahead.plugins.tensorrt.record import Bucket
from lineahead.runtime.artifact import read_artifact
from lineahead.runtime.backends.trt_drafts import ServedDraft
from lineahead.runtime.bench.tensorrt_process import StepBench

DRAFTS = tuple(Bucket(batch=batch, nodes=1, results=1) for batch in (1, 4))
BUCKETS = tuple(Bucket(batch=batch, nodes=8, results=8) for batch in (1, 4))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("fused", [False, True])
def test_the_lowered_draft_says_what_the_exported_one_says(
    drafting, tensorrt_fakes, tmp_path, precision, fused
):
    source, device = read_artifact(drafting).draft_graph(), tensorrt_fakes.Device()
    assert is_recurrent(source)
    model, draft = draft_graph(source, precision, fused=fused)
    assert {node.domain for node in model.graph} <= {"", "lineahead"}
    save_for_check(model, tmp_path / "draft.onnx")
    engine = tensorrt_fakes.Engine(tmp_path / "draft.onnx", device)
    difference, agreement = compare_draft(source, draft, engine, device, DRAFTS)
    assert difference < {"fp32": 1e-5, "fp16": 1e-2}[precision]
    assert agreement > 0.95


def test_another_draft_is_told_from_it(drafting, tensorrt_fakes, tmp_path):
    source, device = read_artifact(drafting).draft_graph(), tensorrt_fakes.Device()
    model, draft = draft_graph(source, "fp32")
    scale = next(v for name, v in model.graph.initializers.items() if name.endswith("fuse_hidden"))
    scale.const_value = ir.tensor(-scale.const_value.numpy(), name=scale.name)
    save_for_check(model, tmp_path / "draft.onnx")
    engine = tensorrt_fakes.Engine(tmp_path / "draft.onnx", device)
    difference, agreement = compare_draft(source, draft, engine, device, DRAFTS)
    assert difference > 0.1
    assert agreement < 0.8


def test_names_of_another_engine_are_refused(tmp_path):
    engine = tmp_path / "draft_fp16.engine"
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_names(engine, 3, 10)
    write_names(engine, np.array([1, 5, 9], np.int32))
    assert read_names(engine, 3, 10).tolist() == [1, 5, 9]
    for count, vocabulary in ((4, 10), (3, 9)):
        with pytest.raises(ArtifactError, match=f"not the {count} tokens of {engine.name}"):
            read_names(engine, count, vocabulary)
    names_path(engine).write_bytes(b"no array")
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_names(engine, 3, 10)


def test_the_bench_tells_the_drafts_time_from_the_whole_steps(drafting, tensorrt_fakes, tmp_path):
    found, device = read_artifact(drafting), tensorrt_fakes.Device()
    model, draft = draft_graph(found.draft_graph(), "fp32")
    save_for_check(model, tmp_path / "draft.onnx")
    save_for_check(engine_graph(found.graph("fp32"), "fp32"), tmp_path / "verifier.onnx")
    engines = [tensorrt_fakes.Engine(tmp_path / f"{one}.onnx", device) for one in ("verifier", "draft")]
    served = ServedDraft(
        engine=engines[1], buckets=DRAFTS, kernels=tensorrt_fakes.DraftKernels(), names=draft.names
    )
    bench = StepBench(engines[0], device, tensorrt_fakes.Choice(), BUCKETS, served)
    seen = bench.measure(4, 8, 64, 1, 5, repeats=3)
    assert (seen["drafted"], seen["graph_ms"], seen["draft_ms"]) == (5, 2.0, 2.0)  # each is one launch
    assert seen["draft_layers"] == 2
    assert "draft_ms" not in bench.measure(1, 8, 64, repeats=3)
    with pytest.raises(ArtifactError, match="no draft engine"):
        StepBench(engines[0], device, tensorrt_fakes.Choice(), BUCKETS).measure(1, 8, 64, 1, 5, repeats=3)


def test_another_graph_is_no_draft(drafting):
    source = read_artifact(drafting).graph("fp32")
    assert not is_recurrent(source)
    with pytest.raises(ExportError, match="not a recurrent draft"):
        draft_graph(source, "fp32")


def test_an_engine_that_proposes_something_else_is_refused():
    require_agreement(0.81, "draft_fp16.engine")
    with pytest.raises(ParityError, match="only 79% of the best"):
        require_agreement(0.79, "draft_fp16.engine")
