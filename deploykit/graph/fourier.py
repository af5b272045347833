"""Fourier transforms as matrix products: OpenVINO answers the ONNX operator DFT with other numbers, without a word.

The sums are written out: a transform of N points is a product with an N x N matrix of cosines and one of sines, made
inside the graph where N varies. N is a length of text or a width here, so that costs little.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.graph.dims import elements, origin, rank
from deploykit.graph.edit import add_constant, insert, integers_of, replace

if TYPE_CHECKING:
    import onnx_ir as ir

_FLOAT = 1  # onnx.TensorProto.FLOAT
_LARGEST = 4096


def transforms_to_products(graph: ir.Graph) -> int:
    """Replace every DFT of a whole axis; returns how many. One that pads, cuts or is very long stays."""
    return sum(
        _replace(graph, node) for node in list(graph) if node.op_type == "DFT" and node.domain in ("", "ai.onnx")
    )


def _replace(graph: ir.Graph, node: ir.Node) -> bool:
    value = node.inputs[0]
    if value is None or value.shape is None or value.shape[-1] not in (1, 2):
        return False
    axes = rank(value)
    axis = _axis(node)
    if axes is None or axis is None or not 0 <= axis % axes < axes - 1:
        return False
    axis %= axes
    size = value.shape[axis]
    if (isinstance(size, int) and size > _LARGEST) or not _is_whole(node, value, axis):
        return False
    replace(graph, node, _written_out(graph, node, value, axis))
    return True


def _axis(node: ir.Node) -> int | None:
    """The axis: an input since opset 20, an attribute (1 when silent) before."""
    if "axis" in node.attributes:
        return int(node.attributes["axis"].as_int())
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        found = integers_of(node.inputs[2])
        return found[0] if found else None
    version = node.version if node.version is not None else node.graph.opset_imports.get("", 20) if node.graph else 20
    return 1 if version < 20 else -2


def _is_whole(node: ir.Node, value: ir.Value, axis: int) -> bool:
    """No other length is asked for than the axis has."""
    asked = node.inputs[1] if len(node.inputs) > 1 else None
    return asked is None or elements(asked) == [origin(value, axis)]


def _written_out(graph: ir.Graph, node: ir.Node, value: ir.Value, axis: int) -> ir.Value:
    axes = len(value.shape or ())
    inverse = "inverse" in node.attributes and bool(node.attributes["inverse"].as_int())
    onesided = "onesided" in node.attributes and bool(node.attributes["onesided"].as_int())

    def put(kind: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        return insert(graph, node, kind, list(inputs), **attributes)

    cosines, sines = _matrices(graph, node, value, axis, onesided)
    swap = [i for i in range(axes - 1) if i != axis] + [axis]
    back = [swap.index(i) for i in range(axes - 1)]
    parts = [
        put("Transpose", put("Gather", value, _number(graph, index), axis=-1), perm=swap)
        for index in range(int(value.shape[-1]) if value.shape is not None else 1)
    ]
    real = put("MatMul", parts[0], cosines)
    imaginary = put("MatMul", parts[0], sines)
    if not inverse:
        imaginary = put("Neg", imaginary)
    if len(parts) > 1:
        crossed = put("MatMul", parts[1], sines)
        real = put("Sub" if inverse else "Add", real, crossed)
        imaginary = put("Add", imaginary, put("MatMul", parts[1], cosines))
    last = _vector(graph, -1)
    joined = [put("Unsqueeze", put("Transpose", part, perm=back), last) for part in (real, imaginary)]
    result = put("Concat", *joined, axis=-1)
    return put("Div", result, put("Cast", _size(graph, node, value, axis), to=_FLOAT)) if inverse else result


def _matrices(graph: ir.Graph, node: ir.Node, value: ir.Value, axis: int, onesided: bool) -> tuple[ir.Value, ir.Value]:
    """cos and sin of 2 pi j k / N, [N, N], or [N, N // 2 + 1] for the half that a real input needs."""
    size = _size(graph, node, value, axis)
    zero, one = _number(graph, 0), _number(graph, 1)
    steps = insert(graph, node, "Range", [zero, size, one])
    columns = steps
    if onesided:
        half = insert(graph, node, "Add", [insert(graph, node, "Div", [size, _number(graph, 2)]), one])
        columns = insert(graph, node, "Range", [zero, half, one])
    down = insert(graph, node, "Unsqueeze", [steps, _vector(graph, 1)])
    across = insert(graph, node, "Unsqueeze", [columns, _vector(graph, 0)])
    # The remainder keeps the angle small, so that float32 is enough for it.
    turns = insert(graph, node, "Mod", [insert(graph, node, "Mul", [down, across]), size])
    share = insert(
        graph,
        node,
        "Div",
        [insert(graph, node, "Cast", [turns], to=_FLOAT), insert(graph, node, "Cast", [size], to=_FLOAT)],
    )
    turn = add_constant(graph, "fourier_turn", np.array(2 * math.pi, np.float32))
    angles = insert(graph, node, "Mul", [share, turn])
    return insert(graph, node, "Cos", [angles]), insert(graph, node, "Sin", [angles])


def _size(graph: ir.Graph, node: ir.Node, value: ir.Value, axis: int) -> ir.Value:
    """The number of points, an integer without axes."""
    shape = insert(graph, node, "Shape", [value], start=axis, end=axis + 1)
    return insert(graph, node, "Squeeze", [shape, _vector(graph, 0)])


def _number(graph: ir.Graph, number: int) -> ir.Value:
    return add_constant(graph, f"fourier_{number}", np.array(number, np.int64))


def _vector(graph: ir.Graph, number: int) -> ir.Value:
    return add_constant(graph, f"fourier_axis_{number}".replace("-", "minus"), np.array([number], np.int64))
