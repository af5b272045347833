"""Reading constants and attributes of an ONNX graph, and putting nodes and constants into it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

#: Constants above this many elements are weights: they are never read here.
SMALL = 1 << 22


def array_of(value: ir.Value | None) -> np.ndarray | None:
    """The constant behind a value (an initializer or the output of a Constant node); None for anything else."""
    if value is None or value.is_graph_input():
        return None
    tensor = value.const_value
    node = value.producer()
    if tensor is None and node is not None and node.op_type == "Constant" and "value" in node.attributes:
        tensor = node.attributes["value"].as_tensor()
    if tensor is None or tensor.size > SMALL:
        return None
    return np.asarray(tensor.numpy())


def scalar_of(value: ir.Value | None) -> float | None:
    """The number behind a constant of one element."""
    constant = array_of(value)
    return float(constant.reshape(-1)[0]) if constant is not None and constant.size == 1 else None


def integers_of(value: ir.Value | None) -> list[int] | None:
    """The elements of a constant integer scalar or vector."""
    constant = array_of(value)
    if constant is None or constant.ndim > 1 or constant.dtype.kind not in "iu":
        return None
    return [int(element) for element in constant.reshape(-1)]


def perm_of(node: ir.Node) -> list[int]:
    """The permutation of a Transpose; without the attribute it reverses the axes."""
    if "perm" in node.attributes:
        return list(node.attributes["perm"].as_ints())
    value = node.inputs[0]
    assert value is not None
    assert value.shape is not None
    return list(range(len(value.shape)))[::-1]


def add_constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """An initializer of the graph; one of the same name and content is used again."""
    import onnx_ir as ir

    stem, count = name, 0
    while name in graph.initializers:
        known = array_of(graph.initializers[name])
        if known is not None and known.dtype == array.dtype and np.array_equal(known, array):
            return cast("ir.Value", graph.initializers[name])
        count += 1
        name = f"{stem}.{count}"
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def insert(
    graph: ir.Graph,
    before: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    *,
    domain: str = "",
    **attributes: int | float | Sequence[int],
) -> ir.Value:
    """Put a node of one output in front of ``before``; returns its output."""
    import onnx_ir as ir

    node = ir.node(op_type, inputs, attributes, domain=domain)
    graph.insert_before(before, node)
    return node.outputs[0]


def replace(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Let everything read ``value`` instead of the only output of ``node``, and remove the node.

    A graph output keeps its name, its type and its axes.
    """
    import onnx_ir as ir

    old = node.outputs[0]
    is_output = old.is_graph_output()
    if is_output and (value.producer() is None or value.is_graph_output()):
        value = insert(graph, node, "Identity", [value])
    if value.shape is None or is_output:
        value.shape = old.shape
    if value.type is None:
        value.type = old.type
    ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    if is_output:
        value.name = old.name
