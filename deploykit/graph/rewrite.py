"""Brings an exported graph into the form that engines know how to fuse, with standard operators only.

Exporters write attention with NaN guards, infinite masks, transposes as chains of reshapes, and shapes as small
programs. `clean` takes all of this out; what it leaves is the plain arithmetic that `deploykit.graph.attention` finds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from deploykit.graph import masks
from deploykit.graph.attention import AttentionSite, attention_sites
from deploykit.graph.control_flow import fold_branches
from deploykit.graph.dims import elements, origins, reshape_target
from deploykit.graph.edit import add_constant, array_of, insert, perm_of, replace
from deploykit.graph.einsum import einsums_to_products
from deploykit.graph.fourier import transforms_to_products
from deploykit.graph.pools import whole_pools_to_global

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

_ROUNDS = 5
_NEUTRAL = {"Add": 0.0, "Sub": 0.0, "Mul": 1.0, "Div": 1.0}
_NEARLY, _APART = 1e-4, "Apart"


def clean(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same function of the same inputs, in fewer and plainer operators. Cleaning twice changes nothing more.

    Differs only for a row of attention that is masked whole: it becomes a finite average instead of NaN or zeros.
    """
    import onnx_ir as ir

    graph_model = ir.from_proto(model)
    clean_ir(graph_model)
    return ir.to_proto(graph_model)


def clean_ir(model: ir.Model) -> None:
    """`clean`, in place."""
    from onnxscript import optimizer

    graph = model.graph
    before: list[str] = []
    # Each round opens something for the next: a folded constant, a transpose of a transpose. Two or three settle it.
    for number in range(_ROUNDS):
        # The rounds repeat it anyway; twice in each is most of the time that a large graph takes.
        with _nearly_nothing_apart(graph):
            optimizer.optimize(model, num_iterations=1 if number else 2)
        fold_branches(graph)
        transforms_to_products(graph)
        einsums_to_products(graph)
        whole_pools_to_global(graph)
        transposes_from_reshapes(graph)
        masks.fills_to_additive(graph)
        for site in attention_sites(graph):
            _clean_attention(graph, site)
        constant_reshapes(graph)
        tidy(model)
        after = [node.op_type for node in graph]
        if after == before:
            break
        before = after


@contextmanager
def _nearly_nothing_apart(graph: ir.Graph) -> Iterator[None]:
    """Keep ``log(x + 1e-10)`` from the optimizer, which takes such a constant for the 0 that can be left out."""
    apart = {node: node.op_type for node in graph.all_nodes() if node.op_type in _NEUTRAL and _is_nearly_neutral(node)}
    for node, operator in apart.items():
        node.op_type = operator + _APART
    try:
        yield
    finally:
        for node in graph.all_nodes():
            node.op_type = node.op_type.removesuffix(_APART)


def _is_nearly_neutral(node: ir.Node) -> bool:
    arrays = [array for value in node.inputs if (array := array_of(value)) is not None and array.size == 1]
    off = [abs(float(array.reshape(-1)[0]) - _NEUTRAL[node.op_type]) for array in arrays]
    return any(0 < distance < _NEARLY for distance in off)


def tidy(model: ir.Model) -> None:
    """Take out what nothing reads, what is computed twice, and the exporter's stack traces; give everything a name."""
    import onnx_ir.passes.common as passes

    for step in (
        passes.IdentityEliminationPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.TopologicalSortPass(),
        passes.ClearMetadataAndDocStringPass(),
        passes.NameFixPass(),
    ):
        step(model)


def _clean_attention(graph: ir.Graph, site: AttentionSite) -> None:
    finite = True
    for mask in site.masks:
        if masks.is_nothing(mask):
            _take_out(graph, site, mask)
        elif masks.make_finite(graph, mask):
            masks.shrink(graph, mask)
        elif site.guard is not None:
            _bound(graph, site, mask)
        else:
            finite = False
    if site.guard is not None and finite:
        weights = site.guard.inputs[2]
        assert weights is not None
        replace(graph, site.guard, weights)


def _take_out(graph: ir.Graph, site: AttentionSite, mask: ir.Value) -> None:
    """Remove the addition of zeros."""
    for node, index in list(mask.uses()):
        scores = node.inputs[1 - index] if node.op_type == "Add" else None
        if scores is not None and _leads_to(node, site.softmax):
            replace(graph, node, scores)


def _bound(graph: ir.Graph, site: AttentionSite, mask: ir.Value) -> None:
    """Cut a mask of unknown origin off at a finite number, so that the guard behind the softmax is not needed."""
    for node, index in list(mask.uses()):
        if node.op_type == "Add" and _leads_to(node, site.softmax):
            node.replace_input_with(index, masks.bound_below(graph, node, mask))


def _leads_to(node: ir.Node, softmax: ir.Node) -> bool:
    while node is not softmax:
        uses = list(node.outputs[0].uses())
        if len(uses) != 1 or node.op_type not in ("Add", "Mul", "Div"):
            return False
        node = uses[0].node
    return True


def constant_reshapes(graph: ir.Graph) -> int:
    """Write constant targets for reshapes whose sizes can be followed, and drop reshapes to the same shape.

    Batch and length stay dynamic: 0 keeps an axis of the input. Returns how many reshapes changed.
    """
    count = 0
    for node in list(graph):
        if node.op_type != "Reshape" or node.domain not in ("", "ai.onnx") or node.inputs[0] is None:
            continue
        target = reshape_target(node)
        if target is None:
            continue
        if _keeps_shape(node, target):
            replace(graph, node, node.inputs[0])
            count += 1
        elif array_of(node.inputs[1]) is None:
            _set_target(graph, node, target)
            count += 1
    return count


def _keeps_shape(node: ir.Node, target: list[int]) -> bool:
    value = node.inputs[0]
    source = None if value is None else origins(value)
    if source is None or len(source) != len(target) or node.outputs[0].is_graph_output():
        return False
    return all(size == 0 or size == old for size, old in zip(target, source, strict=True))


def _set_target(graph: ir.Graph, node: ir.Node, target: list[int]) -> None:
    import onnx_ir as ir

    name = "shape_" + "_".join(map(str, target)).replace("-1", "rest")
    node.replace_input_with(1, add_constant(graph, name, np.array(target, np.int64)))
    node.attributes.pop("allowzero", None)
    value, source = node.outputs[0], node.inputs[0]
    assert source is not None
    sizes = list(value.shape) if value.shape is not None else [None] * len(target)
    for i, size in enumerate(target):
        if size > 0:
            sizes[i] = size
        elif size == 0 and source.shape is not None:
            sizes[i] = source.shape[i]
    value.shape = ir.Shape(sizes)
    _update_transposes(value)


def _update_transposes(value: ir.Value) -> None:
    """Carry a shape that became known through the transposes that follow."""
    import onnx_ir as ir

    for node, _ in value.uses():
        if node.op_type == "Transpose" and value.shape is not None:
            node.outputs[0].shape = ir.Shape([value.shape[axis] for axis in perm_of(node)])
            _update_transposes(node.outputs[0])


def transposes_from_reshapes(graph: ir.Graph) -> int:
    """Turn Reshape to 3 axes → Transpose of the last two → Reshape back into one Transpose; returns how many."""
    count = 0
    for node in list(graph):
        if node.op_type != "Reshape" or node.inputs[0] is None:
            continue
        swap = node.inputs[0].producer()
        if swap is None or swap.op_type != "Transpose" or perm_of(swap) != [0, 2, 1] or swap.inputs[0] is None:
            continue
        flatten = swap.inputs[0].producer()
        if flatten is None or flatten.op_type != "Reshape" or flatten.inputs[0] is None:
            continue
        source = flatten.inputs[0]
        sizes, flat, back = origins(source), elements(flatten.inputs[1]), elements(node.inputs[1])
        if sizes is None or len(sizes) < 3 or flat is None or back != [*sizes[:-2], sizes[-1], sizes[-2]]:
            continue
        if len(flat) != 3 or flat[1:] != sizes[-2:]:
            continue
        perm = [*range(len(sizes) - 2), len(sizes) - 1, len(sizes) - 2]
        replace(graph, node, insert(graph, node, "Transpose", [source], perm=perm))
        count += 1
    return count
