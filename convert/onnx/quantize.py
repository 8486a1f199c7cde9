"""A graph with its weight matrices as blocks of 4- or 8-bit integers, for ONNX Runtime's MatMulNBits."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from lineahead.convert.onnx.blockwise import Blocks, Floats, quantize_blocks
from lineahead.convert.onnx.fusions import fuse_skip_norms
from lineahead.convert.onnx.graph import save
from lineahead.plugins import step_graph
from lineahead.plugins.augmented_attention.schema import DOMAIN, OP_TYPE

CONTRIB = "com.microsoft"
BITS = {"int8": 8, "int4": 4}
BLOCK = 32
ACCURACY_LEVEL = 4  # int8 activations inside the kernel: the only level with a fast 4-bit one on x86
KEEP_BITS = 8  # of what 4 bits hurt most: see `_keeps_bits`
RECORD = "lineahead.quantized"
NORMALIZES = ("RMSNormalization", "LayerNormalization", "SimplifiedLayerNormalization", "ReduceMean")


@dataclass(frozen=True, kw_only=True)
class _Product:
    """One matrix product by a constant: ``result = lhs @ weight.T + bias``."""

    node: ir.Node
    lhs: ir.Value
    weight: ir.Value
    rows_first: bool
    bias: ir.Value | None

    @property
    def count(self) -> int:
        """N."""
        return _size(self.weight, 0 if self.rows_first else 1)

    def rows(self) -> Floats:
        """The weight as ``[N, K]``."""
        tensor = self.weight.const_value
        assert tensor is not None
        array = tensor.numpy()
        return array if self.rows_first else array.T


def quantize(model: ir.Model, *, bits: int) -> None:
    """Quantise every product by a constant matrix in place, and the table of token embeddings.

    Products of one input (query, key and value; gate and up) become one product. A table that is also the LM
    head's matrix is stored once. What each group of integers stands for is recorded in the model's metadata.

    Args:
        model: a step or draft graph in float32; weights may be lazy.
        bits: 4 or 8; under 4, the matrices named in :func:`_keeps_bits` get 8.
    """
    graph = model.graph
    tables = {node.inputs[0]: node for node in graph if _is_table(node)}
    done: dict[ir.Value, tuple[Blocks, dict[str, ir.Value]]] = {}
    record: dict[str, list[tuple[str, int]]] = {}
    groups = _groups(graph)
    widths = [KEEP_BITS if _keeps_bits(group) else bits for group in groups]
    for group, chosen in zip(groups, widths, strict=True):
        rows = [one.rows() for one in group]
        blocks = quantize_blocks(
            rows[0] if len(rows) == 1 else np.concatenate(rows), bits=chosen, block=BLOCK
        )
        del rows
        names = [(one.weight.name or "", one.count) for one in group]
        parts = _replace_products(graph, group, blocks)
        done[group[0].weight] = (blocks, parts)
        record[parts["codes"].name or ""] = names
    for table, node in tables.items():
        assert table is not None
        if table not in done:
            assert table.const_value is not None
            blocks = quantize_blocks(table.const_value.numpy(), bits=KEEP_BITS, block=BLOCK)
            done[table] = (blocks, _store(graph, table.name or "table", blocks))
            record[done[table][1]["codes"].name or ""] = [(table.name or "", blocks.codes.shape[0])]
        _replace_table(graph, node, *done[table])
    fuse_skip_norms(graph)
    common.RemoveUnusedNodesPass()(model)
    model.opset_imports[CONTRIB] = 1
    model.metadata_props[RECORD] = json.dumps(record)


def quantize_file(source: Path, target: Path, *, bits: int) -> None:
    """Read `source`, quantise it, write `target` (and ``<target>.data``); see :func:`quantize`."""
    model = ir.load(source)
    quantize(model, bits=bits)
    save(model, target)


def stored_weights(model: ir.Model) -> Iterator[tuple[str, Floats]]:
    """The float32 matrices ``[N, K]`` that a quantised graph stands for, by the original initialiser's name.

    Names that end in ``.T`` were stored transposed; here all are one row per output.
    """
    graph = model.graph
    columns = {
        node.inputs[1].name: node.attributes.get_int("K")
        for node in graph
        if node.op_type == "MatMulNBits" and node.inputs[1] is not None
    }
    for codes_name, parts in json.loads(model.metadata_props[RECORD]).items():
        stem = codes_name.removesuffix(".codes")
        matrix = _blocks(graph, stem, columns.get(codes_name)).dequantized()
        start = 0
        for name, count in parts:
            yield name, matrix[start : start + count]
            start += count
        _unmap(graph.initializers[codes_name].const_value)


def _blocks(graph: ir.Graph, stem: str, columns: int | None) -> Blocks:
    codes, scales, zeros = (_array(graph, f"{stem}.{part}") for part in ("codes", "scales", "zeros"))
    return Blocks(
        codes=codes,
        scales=scales,
        zeros=zeros,
        bits=codes.shape[-1] * 8 // BLOCK,
        block=BLOCK,
        columns=columns or scales.shape[1] * BLOCK,
    )


def _array(graph: ir.Graph, name: str) -> Any:
    tensor = graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def _keeps_bits(group: list[_Product]) -> bool:
    """Whether a group keeps 8 bits: the LM head, what attention reads, a feed-forward's second product.

    Mean KL divergence from float32 on 1,024 tokens of WikiText-2 (SmolLM2-135M-Instruct, softmax attention),
    and time of one step without attention on one core:

    ==========================================  =====  =======
    everything at 4 bits                        0.32   12.6 ms
    and the LM head at 8                        0.25
    and what attention reads                    0.14   13.5 ms
    and the feed-forwards' second products      0.06   14.4 ms
    everything at 8                             0.001  17.0 ms
    ==========================================  =====  =======
    """
    if group[0].lhs.name == step_graph.HIDDEN_STATES:
        return True
    results = [value for one in group for value in one.node.outputs]
    if any((node.domain, node.op_type) == (DOMAIN, OP_TYPE) for node in _downstream(results)):
        return True
    return any(_product(node) is not None for node in _upstream([group[0].lhs]))


def _downstream(values: list[ir.Value]) -> Iterator[ir.Node]:
    """Nodes that `values` reach, up to and including the next product by a constant."""
    seen: set[ir.Node] = set()
    while values:
        for node, _ in values.pop().uses():
            if node not in seen:
                seen.add(node)
                yield node
                if _product(node) is None:
                    values += node.outputs


def _upstream(values: list[ir.Value]) -> Iterator[ir.Node]:
    """Nodes that `values` come from, back to and including products, attention and normalisations."""
    seen: set[ir.Node] = set()
    while values:
        node = values.pop().producer()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            if _product(node) is None and node.op_type not in NORMALIZES and node.op_type != OP_TYPE:
                values += [value for value in node.inputs if value is not None]


def _groups(graph: ir.Graph) -> list[list[_Product]]:
    """Products by a constant, those of one input and without bias together, in graph order."""
    groups: dict[tuple[ir.Value, int], list[_Product]] = {}
    for position, node in enumerate(graph):
        product = _product(node)
        if product is not None:
            alone = product.bias is not None or node.op_type != "MatMul"
            groups.setdefault((product.lhs, position if alone else -1), []).append(product)
    return list(groups.values())


def _product(node: ir.Node) -> _Product | None:
    if node.domain or node.op_type not in ("MatMul", "Gemm"):
        return None
    lhs, weight = node.inputs[0], node.inputs[1]
    if lhs is None or weight is None or lhs.const_value is not None:
        return None
    rows_first, bias = False, None
    if node.op_type == "Gemm":
        plain = [node.attributes.get_int("transA", 0), node.attributes.get_float("alpha", 1.0)]
        if plain != [0, 1.0] or node.attributes.get_float("beta", 1.0) != 1.0:
            return None
        rows_first = bool(node.attributes.get_int("transB", 0))
        bias = node.inputs[2] if len(node.inputs) > 2 else None
    producer = weight.producer()
    if producer is not None and producer.op_type == "Transpose":
        rows_first, weight = not rows_first, producer.inputs[0]
    if weight is None or not weight.is_initializer() or weight.const_value is None:
        return None
    if weight.const_value.shape.rank() != 2 or (bias is not None and not bias.is_initializer()):
        return None
    if _size(weight, 1 if rows_first else 0) < BLOCK:
        return None
    return _Product(node=node, lhs=lhs, weight=weight, rows_first=rows_first, bias=bias)


def _is_table(node: ir.Node) -> bool:
    """Whether `node` looks token ids up in a constant table that blocks fit."""
    if node.op_type != "Gather" or node.domain or node.attributes.get_int("axis", 0) != 0:
        return False
    table, ids = node.inputs[:2]
    while ids is not None and (producer := ids.producer()) is not None:
        ids = producer.inputs[0] if producer.op_type in ("Reshape", "Cast", "Identity") else None
    if ids is None or ids.name != "input_ids" or table is None or table.const_value is None:
        return False
    is_matrix = table.const_value.shape.rank() == 2 and table.const_value.dtype == ir.DataType.FLOAT
    return is_matrix and _size(table, 1) % BLOCK == 0


def _size(weight: ir.Value, axis: int) -> int:
    assert weight.const_value is not None
    return weight.const_value.shape.numpy()[axis]


def _initializer(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.dtype, value.shape = value.const_value.dtype, ir.Shape(array.shape)  # type: ignore[union-attr]
    graph.register_initializer(value)
    return value


def _store(graph: ir.Graph, name: str, blocks: Blocks) -> dict[str, ir.Value]:
    parts: dict[str, NDArray[Any]] = {"codes": blocks.codes, "scales": blocks.scales, "zeros": blocks.zeros}
    return {part: _initializer(graph, f"{name}.{part}", array) for part, array in parts.items()}


def _replace_products(graph: ir.Graph, group: list[_Product], blocks: Blocks) -> dict[str, ir.Value]:
    first, rows = group[0], blocks.codes.shape[0]
    parts = _store(graph, first.weight.name or first.node.name or "weight", blocks)
    inputs: list[ir.Value | None] = [first.lhs, parts["codes"], parts["scales"], parts["zeros"]]
    if first.bias is not None:
        inputs += [None, first.bias]
    product = ir.node(
        "MatMulNBits",
        inputs,
        {
            "K": blocks.columns,
            "N": rows,
            "bits": blocks.bits,
            "block_size": BLOCK,
            "accuracy_level": ACCURACY_LEVEL,
        },
        domain=CONTRIB,
    )
    graph.insert_before(first.node, product)
    results = [product.outputs[0]]
    if len(group) > 1:
        widths = np.array([len(one.rows()) for one in group], np.int64)
        sizes = _initializer(graph, f"{parts['codes'].name}.widths", widths)
        split = ir.node("Split", [product.outputs[0], sizes], {"axis": -1}, num_outputs=len(group))
        graph.insert_before(first.node, split)
        results = list(split.outputs)
    for one, result in zip(group, results, strict=True):
        _substitute(graph, one.node, result)
        _release(graph, one.weight)
    return parts


def _replace_table(graph: ir.Graph, node: ir.Node, blocks: Blocks, parts: dict[str, ir.Value]) -> None:
    table, ids = node.inputs
    flat = _initializer(
        graph, f"{parts['codes'].name}.flat_shape", np.array([blocks.codes.shape[0], -1], np.int64)
    )
    codes = ir.node("Reshape", [parts["codes"], flat])
    gather = ir.node(
        "GatherBlockQuantized",
        [codes.outputs[0], ids, parts["scales"], parts["zeros"]],
        {"bits": blocks.bits, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1},
        domain=CONTRIB,
    )
    graph.insert_before(node, [codes, gather])
    _substitute(graph, node, gather.outputs[0])
    assert table is not None
    _release(graph, table)


def _substitute(graph: ir.Graph, node: ir.Node, result: ir.Value) -> None:
    """Put `result` where the node's output was, keeping its name, and drop the node."""
    old = node.outputs[0]
    result.type, result.shape = old.type, old.shape
    ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
    name, old.name = old.name, None
    result.name = name
    graph.remove(node, safe=True)


def _release(graph: ir.Graph, weight: ir.Value) -> None:
    """Drop an initialiser, and the Transposes of it, once nothing else reads it."""
    for use in list(weight.uses()):
        if use.node.op_type == "Transpose" and not use.node.outputs[0].uses():
            graph.remove(use.node, safe=True)
    if not weight.uses() and weight.name is not None:
        graph.initializers.pop(weight.name, None)
        weight.const_value, tensor = None, weight.const_value
        _unmap(tensor)


def _unmap(tensor: ir.TensorProtocol | None) -> None:
    """Close the map of the data file that reading a tensor opened: its pages count as memory."""
    if isinstance(tensor, ir.ExternalTensor):
        tensor.release()
