"""Ends the fp32 tail of a graph early, so that an engine which runs in bf16 keeps the residual stream in bf16 too.

OpenVINO leaves in fp32 what stands between the last product with a weight and the output. In a transformer that reaches
much further than pooling and normalisation: along the residual connections, which no weight interrupts, back to the
embeddings, with a conversion before and after every matrix product. A product with the identity matrix right before
the pooling ends the tail there. It changes no value but for the rounding to bf16 that every other product does too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from deploykit.graph.edit import add_constant

if TYPE_CHECKING:
    import onnx_ir as ir

_WEIGHTED = frozenset({"MatMul", "Gemm", "Conv"})


def end_tail(model: ir.Model) -> bool:
    """Put the product behind the last LayerNormalization over tokens; False where there is none or no tail to end.

    Also False where the graph computes indices as floats (numbers of frames, say): in the tail they are exact, and
    bf16 has no integers beyond 256.
    """
    import onnx_ir as ir

    graph = model.graph
    if any(_makes_index(node) for node in graph):
        return False
    last = next((node for node in reversed(graph) if node.op_type == "LayerNormalization"), None)
    if last is None:
        return False
    tokens = last.outputs[0]
    width = tokens.shape[-1] if tokens.shape is not None and len(tokens.shape) == 3 else None
    if not isinstance(width, int) or tokens.is_graph_output() or _feeds_weight(tokens):
        return False
    identity = add_constant(graph, "identity", np.eye(width, dtype=np.float32))
    product = ir.node("MatMul", [tokens, identity])
    product.outputs[0].shape, product.outputs[0].type = tokens.shape, tokens.type
    for node, index in list(tokens.uses()):
        node.replace_input_with(index, product.outputs[0])
    product.replace_input_with(0, tokens)
    graph.insert_after(last, product)
    return True


def _makes_index(node: ir.Node) -> bool:
    """A cast from a float to a whole number."""
    import onnx_ir as ir

    if node.op_type != "Cast" or node.inputs[0] is None:
        return False
    source, target = node.inputs[0].dtype, ir.DataType(node.attributes["to"].as_int())
    return target.is_integer() and (source is None or source.is_floating_point())


def _feeds_weight(value: ir.Value) -> bool:
    """Does anything behind ``value`` multiply with a weight? Then the tail ends there anyway."""
    waiting, seen = [value], {value}
    while waiting:
        for node, _ in waiting.pop().uses():
            if node.op_type in _WEIGHTED and any(v is not None and v.const_value is not None for v in node.inputs):
                return True
            new = [output for output in node.outputs if output not in seen]
            seen.update(new)
            waiting += new
    return False
