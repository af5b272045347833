"""Embedding tables in int8: rows are looked up, not multiplied, so each row has a scale of its own and little is lost.

A table is often most of a small text encoder's bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

_FEWEST_ROWS = 256


def store(model: ir.Model) -> list[str]:
    """Store tables that are only looked up by row in int8 with a scale per row; returns their names."""
    import onnx_ir as ir

    from deploykit.graph.edit import add_constant, insert, replace

    graph, done = model.graph, []
    for name, value in list(graph.initializers.items()):
        uses = [use.node for use in value.uses()]
        if value.dtype != ir.DataType.FLOAT or value.is_graph_output() or not uses or not _is_table(value, uses):
            continue
        table = np.asarray(value.const_value.numpy())
        if not np.isfinite(table).all():
            continue
        top = np.abs(table).max(axis=1, keepdims=True)
        steps = np.where(top > 0, top / 127, 1.0).astype(np.float32)
        integers = add_constant(graph, f"{name}_int8", np.rint(table / steps).astype(np.int8))
        scales = add_constant(graph, f"{name}_scale", steps)
        for node in uses:
            rows = insert(graph, node, "Gather", [integers, node.inputs[1]])
            as_float = insert(graph, node, "Cast", [rows], to=int(ir.DataType.FLOAT))
            scale = insert(graph, node, "Gather", [scales, node.inputs[1]])
            replace(graph, node, insert(graph, node, "Mul", [as_float, scale]))
        done.append(name)
    return done


def _is_table(value: ir.Value, uses: Iterable[ir.Node]) -> bool:
    """A matrix of many rows that Gather alone reads, along its rows."""
    tensor = value.const_value
    if tensor is None or len(tensor.shape) != 2 or int(tensor.shape[0]) < _FEWEST_ROWS:
        return False
    return all(node.op_type == "Gather" and node.inputs[0] is value and _axis(node) == 0 for node in uses)


def _axis(node: ir.Node) -> int:
    return int(node.attributes["axis"].value) if "axis" in node.attributes else 0
