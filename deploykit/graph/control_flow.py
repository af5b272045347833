"""Control flow in exported graphs: folded away where its condition is a constant, else found for a refusal.

Bundles hold plain graphs only: what stands inside a branch or a loop is not seen by the checks of a device, by the
quantizers, or by engines that compile ahead of time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.errors import ExportError
from deploykit.graph.edit import scalar_of

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

_OPERATORS = frozenset({"If", "Loop", "Scan", "SequenceMap"})


def fold_branches(graph: ir.Graph) -> int:
    """Put the nodes of the branch that is taken in the place of every If whose condition is known; returns how many."""
    import onnx_ir as ir

    count = 0
    for node in list(graph):
        if node.op_type != "If" or node.domain not in ("", "ai.onnx"):
            continue
        condition = scalar_of(node.inputs[0])
        if condition is None:
            continue
        branch = node.attributes["then_branch" if condition else "else_branch"].as_graph()
        if branch.initializers:
            for name, value in list(branch.initializers.items()):
                branch.initializers.pop(name)
                value.name = f"{node.name or 'if'}.{name}"
                graph.register_initializer(value)
        inside, results = list(branch), list(branch.outputs)
        for result in results:
            result_node = result.producer()
            if result_node is not None and result_node not in inside:
                break  # a value from outside: the reads below go to it as well
        branch.remove(inside)
        graph.insert_before(node, inside)
        ir.convenience.replace_all_uses_with(list(node.outputs), results, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        count += 1
    return count


def refuse(model: onnx.ModelProto, traces: dict[str, str]) -> None:
    """`ExportError` when a branch or a loop is left; ``traces`` are source lines by operator, from `lines`."""
    left = sorted({node.op_type for node in model.graph.node if node.op_type in _OPERATORS})
    if not left:
        return
    places = "; ".join(f"{name} from {traces[name]}" for name in left if traces.get(name))
    raise ExportError(
        f"the graph holds control flow ({', '.join(left)}){': ' + places if places else ''}",
        hint="the model branches or loops over its data: bundles hold plain graphs, so fix its size or rewrite that",
    )


def lines(model: onnx.ModelProto) -> dict[str, str]:
    """The model's source line behind each kind of control flow, where the exporter wrote it into the graph."""
    from deploykit.graph.diagnose import mentioned

    found = {}
    for node in model.graph.node:
        if node.op_type in _OPERATORS:
            told = next((entry.value for entry in node.metadata_props if entry.key.endswith("stack_trace")), "")
            found[node.op_type] = mentioned(told)
    return found
