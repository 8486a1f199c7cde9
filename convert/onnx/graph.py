"""A step model traced into one ONNX graph: one node per attention layer, and the bodies that define it."""

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor

from lineahead.errors import ExportError
from lineahead.plugins import step_graph
from lineahead.plugins.augmented_attention import onnx as operator
from lineahead.plugins.augmented_attention.huggingface.step_model import StepModel
from lineahead.plugins.augmented_attention.schema import (
    DOMAIN,
    INPUTS,
    OP_TYPE,
    OP_VERSION,
    AttentionSettings,
)
from lineahead.plugins.softmax_attention.schema import CacheSettings

IR_VERSION = 10
OPSET = 23  # RMSNormalization and RotaryEmbedding exist from here on: half the nodes of 21
EXTERNAL_BYTES = 64 * 2**20
MIN_SHARED_BYTES = 1024


def trace(model: StepModel, *, opset: int = OPSET) -> ir.Model:
    """The step graph of `model`, its weights by reference.

    Args:
        model: the step model, float32, on the CPU.
        opset: version of the default domain, at least 18.

    Raises:
        ExportError: when the exporter lost an input, or stamped another opset.
    """
    settings = [layer.settings for layer in model.layers]
    inputs, outputs = step_graph.input_names(settings), step_graph.output_names(settings)
    graph = operator.exported(
        model,
        _samples(model),
        opset=opset,
        inputs=inputs,
        outputs=outputs,
        axes=_axes(settings),
        translations=operator.translation_table(),
    )
    graph.opset_imports.setdefault(DOMAIN, OP_VERSION)
    graph.ir_version = IR_VERSION
    _check(graph, inputs, opset)
    share_storage(graph.graph)
    name_weights(graph.graph, model)
    operator.simplify(graph)
    attach_bodies(graph, model)
    strip_metadata(graph)
    return graph


def save(model: ir.Model, path: Path) -> None:
    """Write `model`; weights go to ``<path>.data`` when they exceed 64 MB.

    Args:
        model: the graph.
        path: file to write; it and its data file are overwritten.
    """
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    ir.save(model, path, external_data=f"{path.name}.data" if size > EXTERNAL_BYTES else None)


def _samples(model: StepModel) -> tuple[Tensor, ...]:
    """Example inputs: no size is 0 or 1, no two axes agree, no tensor occurs twice (export merges those)."""
    batch, nodes, rows, pending = 3, 5, 2, 4
    ancestors, length, index, count = operator.sample_call(batch, nodes, 6)
    past = [
        torch.zeros(*x.shape[:2], pending, *x.shape[3:]) if x.shape[2:3] == (0,) else x
        for x in model.empty(batch, rows=1)
    ]
    tokens = torch.ones(batch, nodes, dtype=torch.int64)
    return (tokens, ancestors, torch.zeros(batch, rows, dtype=torch.int64), index, count, length, *past)


def _axes(settings: Sequence[AttentionSettings | CacheSettings]) -> tuple[object, ...]:
    axis = operator.dimensions()
    batch, nodes = axis["batch"], axis["nodes"]
    capacity = torch.export.Dim("capacity", min=1, max=1 << 24)
    layers: list[dict[int, object]] = []
    for one in settings:
        grows = isinstance(one, CacheSettings)
        layers += [{0: batch, 2: capacity} if grows else {0: batch}] * len(one.state_ports)
        layers += [{0: batch, 2: axis["pending"]}] * len(step_graph.PENDING_PARTS)
    return (
        {0: batch, 1: nodes},
        {0: batch, 1: nodes, 2: nodes},
        {0: batch, 1: axis["rows"]},
        {0: batch, 1: axis["accepts"]},
        {0: batch}, {0: batch}, tuple(layers),
    )  # fmt: skip


def _check(model: ir.Model, inputs: list[str], opset: int) -> None:
    stamped = model.opset_imports.get("")
    if stamped != opset:
        raise ExportError(
            f"the exporter wrote opset {stamped} when asked for {opset}", hint="Export at opset 18 or later."
        )
    dangling = [name for name, value in zip(inputs, model.graph.inputs, strict=True) if not value.uses()]
    if dangling:
        raise ExportError(
            f"graph input {dangling[0]!r} has no consumer",
            hint="This architecture ignores an input of the step graph; report it with config.json.",
        )


def share_storage(graph: ir.Graph) -> None:
    """Merge initialisers that are one tensor in memory (tied embeddings), so that they are written once.

    A transposed view, which the exporter folds when the tensor is small, becomes a Transpose of the other
    again.
    """
    first: dict[int, ir.Value] = {}
    for name, value in list(graph.initializers.items()):
        if value.const_value is None or value.const_value.nbytes < MIN_SHARED_BYTES:
            continue
        array = value.const_value.numpy()
        kept = first.setdefault(array.__array_interface__["data"][0], value)
        assert kept.const_value is not None
        other = kept.const_value.numpy()
        if kept is value or array.dtype != other.dtype:
            continue
        if array.shape == other.shape and array.strides == other.strides:
            ir.convenience.replace_all_uses_with(value, kept)
        elif array.shape == other.T.shape and array.strides == other.T.strides:
            transpose = ir.node("Transpose", [kept], {"perm": list(range(array.ndim))[::-1]})
            graph.insert_before(graph[0], transpose)
            transpose.outputs[0].type, transpose.outputs[0].shape = value.type, value.shape
            ir.convenience.replace_all_uses_with(value, transpose.outputs[0])
        else:
            continue
        graph.initializers.pop(name)


def name_weights(graph: ir.Graph, model: torch.nn.Module) -> None:
    """Give initialisers that are views of a parameter its name; the exporter numbers transposed ones."""
    names = {parameter.data_ptr(): name for name, parameter in model.named_parameters()}
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if value.name in names.values() or tensor is None or len(tensor.shape) != 2:
            continue
        array = tensor.numpy()
        name = names.get(array.__array_interface__["data"][0])
        if name is not None:
            name = name if array.flags.c_contiguous else f"{name}.T"
            value.name = value.name if name in graph.initializers else name


def strip_metadata(model: ir.Model) -> None:
    """Drop the exporter's notes on its own run: local paths, and several times the graph's size."""
    for owner in (model.graph, *model.functions.values()):
        owner.metadata_props.clear()  # type: ignore[attr-defined]
        for node in owner:
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.metadata_props.clear()


def attach_bodies(model: ir.Model, step_model: StepModel) -> None:
    """Give every operator node its function body: one for all layers that agree in what it depends on."""
    bodies: dict[operator.Body, str] = {}
    opset = model.opset_imports[""]
    for node in model.graph:
        if (node.domain, node.op_type) != (DOMAIN, OP_TYPE):
            continue
        window = node.inputs[INPUTS.index("window_key")]
        assert window is not None
        assert window.name is not None
        layer = step_model.layers[int(window.name.split(".")[1])]
        assert isinstance(layer.settings, AttentionSettings)
        scale = node.attributes["scale"].as_float()
        body = operator.Body(settings=layer.settings, shape=layer.shape, scale=scale)
        node.overload = bodies.setdefault(body, "" if not bodies else f"v{len(bodies)}")
    for body, overload in bodies.items():
        function = operator.function_body(body, opset=opset, overload=overload)
        model.functions[function.identifier()] = function
