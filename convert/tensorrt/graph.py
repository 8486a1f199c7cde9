"""The graph that TensorRT parses, made from an exported one, and its twin that ONNX Runtime can check."""

from pathlib import Path

import onnx_ir as ir

from lineahead.convert.tensorrt.fuse import fuse
from lineahead.convert.tensorrt.lower import checkable, lower, without_bodies
from lineahead.convert.tensorrt.passes import simplify
from lineahead.convert.tensorrt.products import flatten_products, merge_products
from lineahead.convert.tensorrt.types import NARROW, narrow
from lineahead.plugins.augmented_attention.schema import DOMAIN, OP_TYPE

EXTERNAL_BYTES = 64 * 2**20


def engine_graph(source: Path, precision: str, *, chain: bool = False, fused: bool = False) -> ir.Model:
    """An exported float32 graph, lowered and in `precision`, its bodies still attached.

    Args:
        source: ``onnx/verifier.onnx`` or ``onnx/draft.onnx``.
        precision: ``fp32``, ``fp16`` or ``bf16``.
        chain: promise the plugin that every call's nodes follow one another, as a prompt's do.
        fused: use the plugin library's operators for what stands between the products.

    Raises:
        ExportError: when something in it has no equivalent.
    """
    model = ir.load(source)
    lower_for_engine(model, precision, chain=chain, fused=fused)
    return model


def lower_for_engine(model: ir.Model, precision: str, *, chain: bool = False, fused: bool = False) -> None:
    """:func:`engine_graph` of a graph in memory, in place."""
    merge_products(model.graph)
    if fused:
        fuse(model)
    lower(model)
    flatten_products(model.graph)
    simplify(model)
    if precision in NARROW:
        narrow(model, precision)
        simplify(model)
    for node in model.graph:
        if node.domain == DOMAIN:
            node.attributes["precision"] = ir.AttrString("precision", precision)
            if chain and node.op_type == OP_TYPE:
                node.attributes["chain"] = ir.AttrInt64("chain", 1)


def save_for_engine(model: ir.Model, path: Path) -> None:
    """Write the graph with bare operator nodes, as the parser wants it; `model` keeps its bodies."""
    bare = model.clone()
    without_bodies(bare)
    _save(bare, path)


def save_for_check(model: ir.Model, path: Path) -> None:
    """Write the graph as ONNX Runtime runs it; `model` keeps its types."""
    twin = model.clone()
    checkable(twin)
    _save(twin, path)


def _save(model: ir.Model, path: Path) -> None:
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    ir.save(model, path, external_data=f"{path.name}.data" if size > EXTERNAL_BYTES else None)
