"""Where the sizes in a graph come from: enough symbolic shape arithmetic to see that two of them are the same.

Exporters write reshapes as chains of Shape, Gather and Concat. A size is told apart by its origin: a number, the name
that the exporter gave to a dynamic axis, or (value, axis) for the last value that the size can be followed back to.
Two equal origins are equal sizes; nothing is concluded from different ones.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from deploykit.graph.edit import array_of, integers_of, perm_of

if TYPE_CHECKING:
    import onnx_ir as ir

Origin = int | str | tuple[str, int]

# Operators whose output has the shape of their first input.
_ACTIVATIONS = {
    "Clip",
    "Elu",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "Mish",
    "Relu",
    "Sigmoid",
    "Softplus",
    "Tanh",
}
_SAME_SHAPE = _ACTIVATIONS | {
    "Cast",
    "Dropout",
    "Erf",
    "Exp",
    "Identity",
    "LayerNormalization",
    "Neg",
    "Softmax",
    "Sqrt",
}
_BROADCASTING = frozenset({"Add", "Sub", "Mul", "Div"})


def rank(value: ir.Value) -> int | None:
    """The number of axes, where shape inference found it."""
    return None if value.shape is None else len(value.shape)


def origins(value: ir.Value) -> list[Origin] | None:
    """The origin of every axis; None when the rank is unknown."""
    axes = rank(value)
    return None if axes is None else [origin(value, axis) for axis in range(axes)]


def origin(value: ir.Value, axis: int) -> Origin:
    """The origin of one axis, ``axis`` counted from the front."""
    if value.shape is not None:
        size = value.shape[axis]
        if isinstance(size, int):
            return size
        # Some writers call every unknown axis "?": a name must be one.
        if size.value is not None and any(letter.isalnum() for letter in str(size.value)):
            return str(size.value)
    followed = _follow(value, axis)
    return (value.name or str(id(value)), axis) if followed is None else origin(*followed)


def _follow(value: ir.Value, axis: int) -> tuple[ir.Value, int] | None:
    """The value and axis that this axis is copied from, one operator up; None where it is made here."""
    node = value.producer()
    if node is None or not node.inputs or node.inputs[0] is None or node.domain not in ("", "ai.onnx"):
        return None
    first = node.inputs[0]
    if node.op_type in _SAME_SHAPE:
        return first, axis
    if node.op_type == "Transpose":
        return first, perm_of(node)[axis]
    if node.op_type == "MatMul" and node.inputs[1] is not None:
        return _through_matmul(value, first, node.inputs[1], axis)
    if node.op_type in _BROADCASTING and node.inputs[1] is not None:
        return _through_broadcast(value, first, node.inputs[1], axis)
    if node.op_type == "Reshape":
        target = integers_of(node.inputs[1])
        if target is not None and target[axis] == 0:
            return first, axis
    return None


def _through_matmul(value: ir.Value, left: ir.Value, right: ir.Value, axis: int) -> tuple[ir.Value, int] | None:
    axes = rank(value)
    if axes is None or rank(left) != axes:
        return None
    if axis < axes - 1:
        return left, axis
    right_rank = rank(right)
    return None if right_rank is None else (right, right_rank - 1)


def _through_broadcast(value: ir.Value, left: ir.Value, right: ir.Value, axis: int) -> tuple[ir.Value, int] | None:
    """Past a bias, which is broadcast to its tensor, and past an attention mask, which is broadcast to the scores."""
    for tensor, other in ((left, right), (right, left)):
        if rank(tensor) != rank(value):
            continue
        constant = array_of(other)
        if constant is not None and (constant.size == 1 or (constant.ndim == 1 and axis + 1 != rank(value))):
            return tensor, axis
        node = tensor.producer()
        feeds_softmax = any(use.node.op_type == "Softmax" for use in value.uses())
        if feeds_softmax and node is not None and node.op_type in ("MatMul", "Mul", "Div"):
            return tensor, axis
    return None


def elements(vector: ir.Value | None) -> list[Origin] | None:
    """The origin of each element of an integer vector (or scalar) that was computed from shapes; None if it was not."""
    if vector is None:
        return None
    constant = integers_of(vector)
    if constant is not None:
        return list(constant)
    node = vector.producer()
    if node is None:
        return None
    if node.op_type == "Shape":
        return _shape_elements(node)
    if node.op_type == "Concat":
        parts = [elements(part) for part in node.inputs]
        return None if None in parts else [e for part in parts if part is not None for e in part]
    source = elements(node.inputs[0]) if node.inputs else None
    if source is None:
        return None
    if node.op_type in ("Unsqueeze", "Squeeze", "Cast", "Identity") or (node.op_type == "Reshape" and len(source) == 1):
        return source
    if node.op_type == "Gather":
        wanted = integers_of(node.inputs[1])
        return None if wanted is None else [source[i] for i in wanted]
    return _slice_elements(node, source) if node.op_type == "Slice" else None


def _shape_elements(node: ir.Node) -> list[Origin] | None:
    value = node.inputs[0]
    found = None if value is None else origins(value)
    if found is None:
        return None
    start = node.attributes["start"].as_int() if "start" in node.attributes else 0
    end = node.attributes["end"].as_int() if "end" in node.attributes else len(found)
    return found[start:end]


def _slice_elements(node: ir.Node, source: list[Origin]) -> list[Origin] | None:
    bounds = [integers_of(value) for value in node.inputs[1:]]
    start, end, step = bounds[0], bounds[1], bounds[3] if len(bounds) > 3 else [1]
    if not start or not end or not step:
        return None
    return source[start[0] : end[0] : step[0]]


def reshape_target(node: ir.Node) -> list[int] | None:
    """A constant target for a Reshape: 0 where it keeps an axis of its input, at most one -1; None if there is none."""
    value = node.inputs[0]
    source = None if value is None else origins(value)
    wanted = _wanted(node)
    if source is None or wanted is None:
        return None
    target: list[int] = []
    for i, size in enumerate(wanted):
        if isinstance(size, int) and size > 0:
            target.append(size)
        elif size == 0 or (i < len(source) and source[i] == size):
            target.append(0)
        else:
            target.append(-1)
    return None if target.count(-1) > 1 else _without_minus_one(target, source)


def _wanted(node: ir.Node) -> list[Origin] | None:
    """The origin of each size that a Reshape gives, from its target and from what was inferred for its output."""
    computed, inferred = elements(node.inputs[1]), origins(node.outputs[0])
    if computed is None or inferred is None or len(computed) != len(inferred):
        return computed if computed is not None else inferred
    # A computed number stands, except -1; for the rest, what has a number or a name wins.
    return [
        old if (isinstance(old, int) and old != -1) or isinstance(new, tuple) else new
        for old, new in zip(computed, inferred, strict=True)
    ]


def _without_minus_one(target: list[int], source: list[Origin]) -> list[int]:
    """Put a number for -1 where the axes that are not kept have one, so that engines know the heads."""
    if -1 not in target:
        return target
    rest = [size for i, size in enumerate(source) if i >= len(target) or target[i] != 0]
    numbers = [size for size in rest if isinstance(size, int)]
    known = math.prod(size for size in target if size > 0)
    if len(numbers) < len(rest) or math.prod(numbers) % known:
        return target
    return [math.prod(numbers) // known if size == -1 else size for size in target]
