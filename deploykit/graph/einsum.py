"""Einsum as matrix products: OpenVINO answers some equations with other numbers, and no quantizer looks into one.

An equation of two operands becomes Transpose, MatMul and Transpose: with a right operand of known sizes one plain
matrix product, else a batch of them, over which labels of one operand alone are broadcast.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from deploykit.graph.edit import add_constant, insert, replace

if TYPE_CHECKING:
    import onnx_ir as ir

_EQUATION = re.compile(r"([A-Za-z]+),([A-Za-z]+)->([A-Za-z]*)")


@dataclass(frozen=True)
class Product:
    """An equation, and its labels: ``shared`` by both operands and the output, the ``rows`` of the left alone, the
    ``columns`` of the right alone, and those ``summed`` over; each in the output's order, the last in the left's.
    """

    left: str
    right: str
    output: str
    shared: str
    rows: str
    columns: str
    summed: str


def einsums_to_products(graph: ir.Graph) -> int:
    """Replace every Einsum that is a matrix product of two tensors; returns how many."""
    count = 0
    for node in list(graph):
        if node.op_type != "Einsum" or node.domain not in ("", "ai.onnx") or len(node.inputs) != 2:
            continue
        product = read(node.attributes["equation"].as_string())
        value = None if product is None else _written_out(graph, node, product)
        if value is not None:
            replace(graph, node, value)
            count += 1
    return count


def read(equation: str) -> Product | None:
    """The products that an equation stands for; None for diagonals, ellipses, and labels that no result needs."""
    found = _EQUATION.fullmatch(equation.replace(" ", ""))
    if found is None or any(len(set(labels)) < len(labels) for labels in found.groups()):
        return None
    left, right, output = found.groups()
    summed = "".join(label for label in left if label in right and label not in output)
    if not summed or set(output) != set(left + right) - set(summed):
        return None
    rows = "".join(label for label in output if label not in right)
    columns = "".join(label for label in output if label not in left)
    shared = "".join(label for label in output if label in left and label in right)
    return Product(left, right, output, shared, rows, columns, summed)


def _written_out(graph: ir.Graph, node: ir.Node, product: Product) -> ir.Value | None:
    left, right = node.inputs
    assert left is not None
    assert right is not None
    if not product.shared and right.shape is not None and all(isinstance(size, int) for size in right.shape):
        value, made = _by_a_matrix(graph, node, product, left, right)
    elif len(product.summed) == 1:
        value, made = _by_broadcasting(graph, node, product, left, right)
    else:
        return None
    return _ordered(graph, node, value, made, product.output)


def _by_a_matrix(
    graph: ir.Graph, node: ir.Node, product: Product, left: ir.Value, right: ir.Value
) -> tuple[ir.Value, str]:
    """[rows, summed] x [summed, columns] with a right operand of known sizes, as a projection has: one plain matrix."""
    assert right.shape is not None
    sizes = {label: int(size) for label, size in zip(product.right, right.shape, strict=True) if isinstance(size, int)}
    inner, outer = (math.prod(sizes[label] for label in labels) for labels in (product.summed, product.columns))
    keep = [0] * len(product.rows)
    one = _ordered(graph, node, left, product.left, product.rows + product.summed)
    if len(product.summed) > 1:
        one = insert(graph, node, "Reshape", [one, _integers(graph, [*keep, inner])])
    other = _ordered(graph, node, right, product.right, product.summed + product.columns)
    other = insert(graph, node, "Reshape", [other, _integers(graph, [inner, outer])])
    value = insert(graph, node, "MatMul", [one, other])
    if len(product.columns) != 1:
        back = _integers(graph, [*keep, *(sizes[label] for label in product.columns)])
        value = insert(graph, node, "Reshape", [value, back])
    return value, product.rows + product.columns


def _by_broadcasting(
    graph: ir.Graph, node: ir.Node, product: Product, left: ir.Value, right: ir.Value
) -> tuple[ir.Value, str]:
    """Every other label stands in front, as an axis of size 1 where an operand has none; matrices are the last two."""
    row, column = product.rows[-1:], product.columns[-1:]
    front = "".join(label for label in product.output if label not in row + column)
    one = _spread(graph, node, left, product.left, front + (row or "<") + product.summed)
    other = _spread(graph, node, right, product.right, front + product.summed + (column or ">"))
    value = insert(graph, node, "MatMul", [one, other])
    extra = [len(front)] * (not row) + [len(front) + 1] * (not column)
    if extra:
        value = insert(graph, node, "Squeeze", [value, _integers(graph, extra)])
    return value, front + row + column


def _spread(graph: ir.Graph, node: ir.Node, value: ir.Value, labels: str, wanted: str) -> ir.Value:
    value = _ordered(graph, node, value, labels, "".join(label for label in wanted if label in labels))
    missing = [axis for axis, label in enumerate(wanted) if label not in labels]
    return insert(graph, node, "Unsqueeze", [value, _integers(graph, missing)]) if missing else value


def _ordered(graph: ir.Graph, node: ir.Node, value: ir.Value, labels: str, wanted: str) -> ir.Value:
    if labels == wanted:
        return value
    return insert(graph, node, "Transpose", [value], perm=[labels.index(label) for label in wanted])


def _integers(graph: ir.Graph, numbers: list[int]) -> ir.Value:
    return add_constant(graph, "einsum_" + "_".join(map(str, numbers)), np.array(numbers, np.int64))
