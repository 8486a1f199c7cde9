"""Merging what rewriting made twice."""

import onnx_ir as ir
from onnx_ir.passes import common


def simplify(model: ir.Model) -> None:
    """Merge equal subexpressions and drop unused nodes and weights; results stay bit-identical."""
    sequence = (common.CommonSubexpressionEliminationPass(), common.RemoveUnusedNodesPass())
    ir.passes.Sequential(*sequence)(model)
