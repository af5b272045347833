"""Brings quantized products into onnxruntime's own operator that adds the bias while it leaves the integers.

onnxruntime turns DequantizeLinear, DequantizeLinear, MatMul into this operator by itself, but leaves the bias behind
as an Add, which reads and writes the whole activation once more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.graph.edit import array_of, insert, replace
from deploykit.quantize.products import constant_of

if TYPE_CHECKING:
    import onnx_ir as ir

DOMAIN = "com.microsoft"


def fuse_bias(model: ir.Model) -> int:
    """Replace each MatMul of a dequantized activation and a dequantized weight, with the Add of its bias, by one
    MatMulIntegerToFloat; returns how many. The Add's output keeps its name.

    For onnxruntime only, and after attention was fused, which takes the biases of its projections.
    """
    import onnx_ir.passes.common as passes

    count = sum(_fuse(model.graph, node) for node in list(model.graph) if node.op_type == "MatMul")
    if count:
        model.opset_imports[DOMAIN] = 1
        passes.RemoveUnusedNodesPass()(model)
    return count


def _fuse(graph: ir.Graph, node: ir.Node) -> bool:
    left, right = (None if value is None else value.producer() for value in node.inputs)
    if left is None or right is None or left.op_type != "DequantizeLinear" or right.op_type != "DequantizeLinear":
        return False
    weight, scale = right.inputs[0], array_of(left.inputs[1])
    stored = constant_of(weight)
    found = _bias(node)
    if stored is None or stored.ndim != 2 or scale is None or scale.size != 1 or found is None:
        return False
    add, bias, size = found
    if size != stored.shape[1]:
        return False
    zero, weight_zero = (maker.inputs[2] if len(maker.inputs) > 2 else None for maker in (left, right))
    name = add.outputs[0].name
    inputs = [left.inputs[0], weight, left.inputs[1], right.inputs[1], zero, weight_zero, bias]
    fused = insert(graph, add, "MatMulIntegerToFloat", inputs, domain=DOMAIN)
    replace(graph, add, fused)
    fused.name = name
    return True


def _bias(node: ir.Node) -> tuple[ir.Node, ir.Value, int] | None:
    """The Add that alone reads a product, the constant vector that it adds, and its size."""
    product = node.outputs[0]
    uses = list(product.uses())
    if len(uses) != 1 or uses[0].node.op_type != "Add" or product.is_graph_output():
        return None
    bias = uses[0].node.inputs[1 - uses[0].idx]
    constant = constant_of(bias)
    if bias is None or constant is None or constant.ndim != 1:
        return None
    return uses[0].node, bias, len(constant)
