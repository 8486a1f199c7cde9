"""Rewrites into ONNX Runtime's own operators, for graphs that only ONNX Runtime reads anyway."""

import onnx_ir as ir

CONTRIB = "com.microsoft"


def fuse_skip_norms(graph: ir.Graph) -> None:
    """Residual addition and RMS normalisation become SkipSimplifiedLayerNormalization, which gives both."""
    for node in list(graph):
        if node.op_type != "RMSNormalization" or node.domain:
            continue
        total, weight = node.inputs[0], node.inputs[1]
        addition = None if total is None else total.producer()
        if (
            addition is None
            or addition.op_type != "Add"
            or addition.domain
            or node.attributes.get_int("axis", -1) != -1
        ):
            continue
        left, right = addition.inputs
        if left is None or right is None or left.shape is None or left.shape != right.shape:
            continue
        fused = ir.node(
            "SkipSimplifiedLayerNormalization",
            [left, right, weight],
            {"epsilon": node.attributes.get_float("epsilon", 1e-5)},
            domain=CONTRIB,
            num_outputs=4,
        )
        graph.insert_before(addition, fused)
        for old, new in ((node.outputs[0], fused.outputs[0]), (addition.outputs[0], fused.outputs[3])):
            new.type, new.shape = old.type, old.shape
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
            name, old.name = old.name, None
            new.name = name
        for unused in fused.outputs[1:3]:
            unused.name = ""
        graph.remove([node, addition], safe=True)
