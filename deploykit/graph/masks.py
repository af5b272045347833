"""Attention masks: made finite, additive and small.

Exporters leave masks as they were traced: minus infinity, ``masked_fill`` on the scores, an all-true term of
[length, length] from a comparison that always holds, and a gather over index grids that copies the padding mask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from deploykit.graph.attention import find_scores
from deploykit.graph.dims import elements, origin, rank
from deploykit.graph.edit import add_constant, array_of, insert, integers_of, replace, scalar_of
from deploykit.graph.plain_attention import MASKED

if TYPE_CHECKING:
    import onnx_ir as ir

# A number at or below this stands for "masked" and for nothing else.
_STANDS_FOR_MASKED = -1e4
# Operators that only move the numbers of their first input.
_MOVING = frozenset({"Unsqueeze", "Squeeze", "Reshape", "Expand", "Transpose", "Slice", "Identity"})


def fills_to_additive(graph: ir.Graph) -> int:
    """Turn ``Where(condition, scores, -inf)`` in front of a softmax into ``scores + Where(condition, 0, MASKED)``.

    Equal but for rows that are masked whole, which stay finite. Returns how many were turned.
    """
    count = 0
    for node in list(graph):
        if node.op_type != "Where" or any(value is None for value in node.inputs) or not _feeds_softmax(node):
            continue
        condition, then, other = node.inputs
        for scores, fill in ((then, other), (other, then)):
            number = scalar_of(fill)
            if number is None or number > _STANDS_FOR_MASKED or scores is None or find_scores(scores) is None:
                continue
            kept, masked = _number(graph, "kept", 0.0, fill), _number(graph, "masked", MASKED, fill)
            branches = (kept, masked) if scores is then else (masked, kept)
            mask = insert(graph, node, "Where", [condition, *branches])
            replace(graph, node, insert(graph, node, "Add", [scores, mask]))
            count += 1
            break
    return count


def _feeds_softmax(node: ir.Node) -> bool:
    uses = [use.node.op_type for use in node.outputs[0].uses()]
    return uses in (["Softmax"], ["Add"])


def _number(graph: ir.Graph, name: str, number: float, like: ir.Value | None) -> ir.Value:
    constant = array_of(like)
    assert constant is not None
    return add_constant(graph, f"attention_{name}", np.array(number, constant.dtype))


def is_nothing(mask: ir.Value) -> bool:
    """A constant that adds zero everywhere, as is left of a mask that hides nothing."""
    constant = array_of(mask)
    return constant is not None and not constant.any()


def make_finite(graph: ir.Graph, mask: ir.Value) -> bool:
    """Replace the constants in a mask that stand for "masked" by `MASKED`, in place; False where it cannot be followed.

    False means that the mask may hold minus infinity, because it comes from an input or an unknown operator.
    """
    constant = array_of(mask)
    if constant is not None:
        return bool(np.isfinite(constant).all())
    node = mask.producer()
    if node is None:
        return False
    if node.op_type == "Where":
        return _finite_operands(graph, node, (1, 2))
    if node.op_type in ("Add", "Mul"):
        return _finite_operands(graph, node, (0, 1))
    if node.op_type in _MOVING:
        return _finite_operands(graph, node, (0,))
    return node.op_type in ("Sub", "Cast") and _is_indicator(mask)


def _finite_operands(graph: ir.Graph, node: ir.Node, indices: tuple[int, ...]) -> bool:
    finite = [_finite_operand(graph, node, index) for index in indices]  # every operand is visited, also behind a False
    return all(finite)


def _finite_operand(graph: ir.Graph, node: ir.Node, index: int) -> bool:
    value = node.inputs[index]
    constant = array_of(value)
    if value is None or constant is None:
        return value is not None and make_finite(graph, value)
    if constant.dtype.kind == "f" and (constant < MASKED).any():
        node.replace_input_with(index, add_constant(graph, "attention_masked", np.maximum(constant, MASKED)))
    return True


def _is_indicator(value: ir.Value) -> bool:
    """Made from booleans or integers: zeros and ones in practice, and never infinite."""
    node = value.producer()
    if node is None:
        return False
    if node.op_type == "Cast":
        source = node.inputs[0]
        return source is not None and source.dtype is not None and not source.dtype.is_floating_point()
    if node.op_type in _MOVING:
        return node.inputs[0] is not None and _is_indicator(node.inputs[0])
    if node.op_type == "Sub":
        return all(
            operand is not None and (array_of(operand) is not None or _is_indicator(operand)) for operand in node.inputs
        )
    return False


def bound_below(graph: ir.Graph, before: ir.Node, mask: ir.Value) -> ir.Value:
    """A mask of unknown origin, cut off at `MASKED`."""
    dtype = np.float32 if mask.dtype is None else mask.dtype.numpy()
    return insert(graph, before, "Max", [mask, add_constant(graph, "attention_masked", np.array(MASKED, dtype))])


def shrink(graph: ir.Graph, mask: ir.Value) -> bool:
    """Simplify the condition of ``Where(condition, 0, MASKED)`` in place; True if something changed.

    An axis along which the mask is constant may shrink to size 1, so this is right only for a mask that is added to
    scores of the full shape.
    """
    node = mask.producer()
    if node is None or node.op_type != "Where" or node.inputs[0] is None:
        return False
    if scalar_of(node.inputs[1]) is None or scalar_of(node.inputs[2]) is None:
        return False
    simpler = _simpler(graph, node, node.inputs[0])
    if simpler is node.inputs[0]:
        return False
    node.replace_input_with(0, simpler)
    mask.shape = None
    return True


def _simpler(graph: ir.Graph, before: ir.Node, condition: ir.Value) -> ir.Value:
    node = condition.producer()
    if node is None:
        return condition
    if node.op_type == "And":
        left, right = node.inputs
        if left is not None and right is not None:
            if _always_true(left):
                return _simpler(graph, before, right)
            if _always_true(right):
                return _simpler(graph, before, left)
    if node.op_type == "Expand" and node.inputs[0] is not None and rank(node.inputs[0]) == rank(condition):
        return _simpler(graph, before, node.inputs[0])
    if node.op_type == "GatherND":
        data = _grid_source(node)
        if data is not None:
            axes = add_constant(graph, "attention_mask_axes", np.array([1, 2], np.int64))
            return insert(graph, before, "Unsqueeze", [data, axes])
    return condition


def _always_true(condition: ir.Value) -> bool:
    constant = array_of(condition)
    if constant is not None:
        return bool(constant.all())
    node = condition.producer()
    if node is None or not node.inputs or node.inputs[0] is None:
        return False
    if node.op_type == "And":
        return all(operand is not None and _always_true(operand) for operand in node.inputs)
    if node.op_type in _MOVING:
        return _always_true(node.inputs[0])
    if node.op_type == "GreaterOrEqual":
        counter = _range_behind(node.inputs[0])
        bound = array_of(node.inputs[1])
        return counter is not None and bound is not None and bool((bound <= 0).all())
    return False


def _range_behind(value: ir.Value | None) -> ir.Node | None:
    """The Range(0, limit, 1) that a value is a reshaped form of."""
    node = None if value is None else value.producer()
    while node is not None and node.op_type in (*_MOVING, "Cast"):
        node = None if node.inputs[0] is None else node.inputs[0].producer()
    if node is None or node.op_type != "Range":
        return None
    return node if integers_of(node.inputs[0]) == [0] and integers_of(node.inputs[2]) == [1] else None


def _grid_source(gather: ir.Node) -> ir.Value | None:
    """``data`` [batch, length] of a GatherND that reads data[i, j] for i = 0… along axis 0 and j = 0… along axis 3 of
    [batch, 1, 1, length]: a copy of data with two axes put in.
    """
    data, indices = gather.inputs
    concat = None if indices is None else indices.producer()
    if data is None or rank(data) != 2 or concat is None or concat.op_type != "Concat" or len(concat.inputs) != 2:
        return None
    if "batch_dims" in gather.attributes and gather.attributes["batch_dims"].as_int() != 0:
        return None
    for axis, (part, place) in enumerate(zip(concat.inputs, (0, 3), strict=True)):
        grid = _grid_counter(part)
        counter = _range_behind(grid)
        if grid is None or counter is None or _axes_above_one(grid) != [place]:
            return None
        if elements(counter.inputs[1]) != [origin(data, axis)]:
            return None
    return data


def _grid_counter(part: ir.Value | None) -> ir.Value | None:
    """The [batch, 1, 1, 1] or [1, 1, 1, length] counter behind Unsqueeze(Expand(counter, …), -1)."""
    for op_type in ("Unsqueeze", "Expand"):
        node = None if part is None else part.producer()
        if node is None or node.op_type != op_type:
            return None
        part = node.inputs[0]
    return part


def _axes_above_one(value: ir.Value) -> list[int] | None:
    return (
        None if value.shape is None or len(value.shape) != 4 else [i for i, size in enumerate(value.shape) if size != 1]
    )
