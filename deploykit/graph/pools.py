"""A pool that covers its whole input as the global pool that it is: OpenVINO refuses windows larger than the input."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.graph.edit import insert, replace

if TYPE_CHECKING:
    import onnx_ir as ir

_PLAIN = ("pads", "dilations")
_GLOBAL = {"AveragePool": "GlobalAveragePool", "MaxPool": "GlobalMaxPool"}


def whole_pools_to_global(graph: ir.Graph) -> int:
    """Replace every unpadded pool whose window is at least as large as its input of known size; returns how many.

    Such a window is cut to the input by ``ceil_mode``, and an average is of what is inside.
    """
    count = 0
    for node in list(graph):
        if node.op_type not in _GLOBAL or node.domain not in ("", "ai.onnx") or len(node.outputs) != 1:
            continue
        value = node.inputs[0]
        if value is not None and value.shape is not None and _covers(node, list(value.shape)[2:]):
            replace(graph, node, insert(graph, node, _GLOBAL[node.op_type], [value]))
            count += 1
    return count


def _covers(node: ir.Node, sizes: list[object]) -> bool:
    pads, dilations = ([*node.attributes[name].as_ints()] if name in node.attributes else [] for name in _PLAIN)
    padded_by_itself = "auto_pad" in node.attributes and node.attributes["auto_pad"].as_string() != "NOTSET"
    if any(pads) or any(step != 1 for step in dilations) or padded_by_itself:
        return False
    window = node.attributes["kernel_shape"].as_ints()
    return all(isinstance(size, int) and edge >= size for edge, size in zip(window, sizes, strict=True))
