"""Finds attention in an ONNX graph by its arithmetic, whatever the architecture and the exporter.

::

    query ─[scale]──┐
                  MatMul ─[scale]─[+ mask]… ─ Softmax(last axis) ─[NaN guard]─[Cast]─┐
    key^T ─[scale]──┘                                                              MatMul ─ product
    value ───────────────────────────────────────────────────────────────────────────┘

Parts in brackets are optional. A site is only reported when nothing else reads what stands between its two products:
an attention whose weights are an output of the graph must keep them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploykit.graph.dims import rank
from deploykit.graph.edit import array_of, perm_of, scalar_of

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class AttentionSite:
    """One attention: ``product = softmax(scale * query @ key + masks) @ value``.

    ``query`` [..., q, size], ``key`` [..., size, k] (already transposed), ``value`` [..., k, value size]; ``masks`` are
    added to the scores. ``guard`` is the Where that replaces NaN behind the softmax, if there is one.
    """

    query: ir.Value
    key: ir.Value
    value: ir.Value
    masks: tuple[ir.Value, ...]
    scale: float
    scores: ir.Node
    softmax: ir.Node
    guard: ir.Node | None
    product: ir.Node


@dataclass(frozen=True)
class Heads:
    """A tensor of heads [batch, heads, length, size] that was split from ``source`` [batch, length, heads * size]."""

    source: ir.Value
    count: int
    size: int


@dataclass(frozen=True)
class _Scores:
    matmul: ir.Node
    scale: float
    masks: tuple[ir.Value, ...]


def attention_sites(graph: ir.Graph) -> list[AttentionSite]:
    """Every attention of the graph that can be fused, in the order of the graph."""
    return [site for node in graph if node.op_type == "Softmax" and (site := _site(node)) is not None]


def _site(softmax: ir.Node) -> AttentionSite | None:
    scores_value = softmax.inputs[0]
    if scores_value is None or not _is_last_axis(softmax):
        return None
    scores = find_scores(scores_value)
    found = _product(softmax)
    if scores is None or found is None:
        return None
    guard, product = found
    query, query_scale = _without_scale(scores.matmul.inputs[0])
    key, key_scale = _without_scale(scores.matmul.inputs[1])
    value = product.inputs[1]
    if query is None or key is None or value is None or array_of(value) is not None:
        return None
    scale = scores.scale * query_scale * key_scale
    return AttentionSite(query, key, value, scores.masks, scale, scores.matmul, softmax, guard, product)


def _is_last_axis(softmax: ir.Node) -> bool:
    axis = softmax.attributes["axis"].as_int() if "axis" in softmax.attributes else -1
    axes = rank(softmax.outputs[0]) or rank(softmax.inputs[0]) if softmax.inputs[0] is not None else None
    return axis == -1 or (axes is not None and axis == axes - 1)


def find_scores(value: ir.Value) -> _Scores | None:
    """Follow what a softmax reads up to the product of queries and keys, through additive masks and constant scales."""
    node = sole_reader_of(value)
    if node is None:
        return None
    left, right = (*node.inputs, None, None)[:2]
    if node.op_type == "MatMul":
        constant = any(operand is None or _is_weight(operand) for operand in (left, right))
        return None if constant else _Scores(node, 1.0, ())
    if left is None or right is None:
        return None
    if node.op_type == "Add":
        for operand, mask in ((left, right), (right, left)):
            below = find_scores(operand)
            if below is not None:
                return _Scores(below.matmul, below.scale, (*below.masks, mask))
    scaled = _scale_of(node)
    if scaled is not None:
        below = find_scores(scaled[0])
        # A scale behind the mask would scale the mask as well.
        if below is not None and not below.masks:
            return _Scores(below.matmul, below.scale * scaled[1], ())
    return None


def sole_reader_of(value: ir.Value) -> ir.Node | None:
    """The node that makes ``value``, when only one node reads it and it is no output of the graph."""
    if value.is_graph_output() or len(value.uses()) != 1:
        return None
    node = value.producer()
    return node if node is not None and node.domain in ("", "ai.onnx") else None


def _is_weight(value: ir.Value) -> bool:
    """A constant, or one that is stored in a smaller type and cast or dequantized when it is read."""
    node = value.producer()
    if node is not None and node.op_type in ("Cast", "DequantizeLinear") and node.inputs[0] is not None:
        return _is_weight(node.inputs[0])
    return value.const_value is not None and not value.is_graph_input()


def _scale_of(node: ir.Node) -> tuple[ir.Value, float] | None:
    """(the scaled value, the factor) of a multiplication or division by a constant number."""
    left, right = (*node.inputs, None, None)[:2]
    if left is None or right is None:
        return None
    factor = scalar_of(right)
    if factor is not None and node.op_type == "Mul":
        return left, factor
    if factor and node.op_type == "Div":
        return left, 1.0 / factor
    factor = scalar_of(left)
    return (right, factor) if factor is not None and node.op_type == "Mul" else None


def _without_scale(value: ir.Value | None) -> tuple[ir.Value | None, float]:
    """Strip constant factors that only this product sees."""
    scale = 1.0
    while value is not None:
        node = sole_reader_of(value)
        scaled = None if node is None else _scale_of(node)
        if scaled is None:
            break
        value, scale = scaled[0], scale * scaled[1]
    return value, scale


def _product(softmax: ir.Node) -> tuple[ir.Node | None, ir.Node] | None:
    """(the NaN guard, the product with the values) behind a softmax, when nothing else reads the weights."""
    weights = softmax.outputs[0]
    guard = _nan_guard(weights)
    if guard is not None:
        weights = guard.outputs[0]
    while True:
        if weights.is_graph_output() or len(weights.uses()) != 1:
            return None
        node, index = next(iter(weights.uses()))
        if node.op_type == "MatMul" and index == 0:
            return guard, node
        if node.op_type != "Cast":
            return None
        weights = node.outputs[0]


def _nan_guard(weights: ir.Value) -> ir.Node | None:
    """The Where of ``Where(IsNaN(weights), 0, weights)``, when it is all that reads the weights."""
    readers = [use.node for use in weights.uses()]
    if weights.is_graph_output() or sorted(node.op_type for node in readers) != ["IsNaN", "Where"]:
        return None
    isnan, where = sorted(readers, key=lambda node: str(node.op_type))
    condition, replacement, kept = where.inputs
    if condition is not isnan.outputs[0] or kept is not weights or scalar_of(replacement) != 0.0:
        return None
    return where if len(isnan.outputs[0].uses()) == 1 and not isnan.outputs[0].is_graph_output() else None


def split_heads(value: ir.Value, *, transposed: bool = False) -> Heads | None:
    """How a [batch, heads, length, size] tensor (``transposed``: [batch, heads, size, length]) was split.

    None unless it is Reshape to [batch, length, heads, size], then Transpose.
    """
    order = [0, 1, 2, 3]
    node = value.producer()
    while node is not None and node.op_type == "Transpose":
        perm = perm_of(node)
        if len(perm) != 4 or node.inputs[0] is None:
            return None
        order = [perm[axis] for axis in order]
        value = node.inputs[0]
        node = value.producer()
    if order != ([0, 2, 3, 1] if transposed else [0, 2, 1, 3]) or node is None or node.op_type != "Reshape":
        return None
    source, shape = node.inputs[0], value.shape
    if source is None or rank(source) != 3 or shape is None or len(shape) != 4:
        return None
    count, size = shape[2], shape[3]
    return Heads(source, count, size) if isinstance(count, int) and isinstance(size, int) else None


def merged_heads(product: ir.Node) -> ir.Value | None:
    """The [batch, length, heads * size] tensor that the product's heads are merged into: Transpose, then Reshape."""
    value = product.outputs[0]
    for op_type in ("Transpose", "Reshape"):
        if value.is_graph_output() or len(value.uses()) != 1:
            return None
        node = next(iter(value.uses())).node
        if node.op_type != op_type or (op_type == "Transpose" and perm_of(node) != [0, 2, 1, 3]):
            return None
        value = node.outputs[0]
    return value if rank(value) == 3 else None
