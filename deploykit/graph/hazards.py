"""What 16-bit arithmetic would break in a graph: numbers beyond its end, sums of squares, angles, indices, epsilons.

Fp16 ends at 65,504, has 11 significant bits, and loses digits below 2^-14; bf16 reaches as far as fp32, with 8 bits.
`find` names the nodes whose results do not survive that, from the graph (what can go wrong for some input) and from the
ranges that its values really had on inputs (`deploykit.graph.ranges`). Those nodes stay in fp32; everything else can be
computed in 16 bits.

Products are not hazards by themselves: engines add them up in fp32. Nor is LayerNormalization as one operator, whose
``stash_type`` asks for fp32 inside; written out in Pow and ReduceMean it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from deploykit.graph.edit import add_constant, array_of, integers_of, scalar_of
from deploykit.graph.plain_attention import MASKED
from deploykit.graph.ranges import MOVING, Ranges

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Form:
    """A float of 16 bits: its largest number, what it loses digits below, and how far it counts without a gap."""

    name: Literal["fp16", "bf16"]
    largest: float
    smallest: float
    counts_to: int


FP16 = Form("fp16", 65504.0, 2.0**-14, 2048)
BF16 = Form("bf16", float.fromhex("0x1.fep+127"), 2.0**-126, 256)
# Inputs that nobody measured with may be larger: a value is safe below a quarter of the largest number.
_HEADROOM = 4.0
# Constants up to this many elements are epsilons, bounds and scales; larger ones are weights.
_FEW = 64

_MASKING = MOVING | {"Add", "Max", "Min", "Mul", "Sub", "Where", "Cast"}
_STATISTICS = MOVING | {"Add", "Clip", "Max", "Min", "Pow", "Reciprocal", "Sqrt", "Where"}
_QDQ = frozenset({"DequantizeLinear", "QuantizeLinear"})
_SUMS = frozenset({"CumSum", "ReduceL1", "ReduceMean", "ReduceSum"})
_SUMS_OF_SQUARES = frozenset({"ReduceL2", "ReduceSumSquare"})
# Arithmetic that positions go through on their way to an index or an angle.
_POSITIONAL = MOVING | {
    "Abs", "Add", "Cast", "Ceil", "Clip", "Cos", "Div", "Einsum", "Exp", "Floor", "Log", "MatMul", "Max", "Min", "Mod",
    "Mul", "Neg", "Pow", "Range", "Reciprocal", "Round", "Sign", "Sin", "Sqrt", "Sub", "Where",
}  # fmt: skip


@dataclass(frozen=True)
class Hazard:
    """One place where 16 bits fail: ``node`` must stay in fp32 because of ``value``.

    ``what`` is one of ``range`` ``constant`` ``square`` ``sum`` ``angle`` ``index``, or ``mask``: a constant that is
    cut off at `MASKED` instead (see `clamp_masks`). ``why`` is a sentence with the number.
    """

    node: str
    value: str
    what: str
    why: str


def find(model: ir.Model, ranges: Ranges | None = None, form: Form = FP16) -> tuple[Hazard, ...]:
    """Every hazard of computing the graph in ``form``, in the graph's order; nodes must have names, and values types.

    Without ``ranges`` only what the graph itself shows is found.
    """
    graph = model.graph
    order = {node: i for i, node in enumerate(graph)}
    found: dict[tuple[ir.Node, str], Hazard] = {}
    behind_masks = _values_behind_masks(graph)
    for node, value, what, why in (
        *_constants(graph, form),
        *_squares(graph, form),
        *_sums(graph, form),
        *_positions(graph, form),
        *(_ranges(graph, ranges, behind_masks, form) if ranges is not None else ()),
    ):
        if node in order:
            found.setdefault((node, what), Hazard(node.name or "", value.name or "", what, why))
    return tuple(hazard for _, hazard in sorted(found.items(), key=lambda item: order[item[0][0]]))


# --- constants ---


def _constants(graph: ir.Graph, form: Form) -> Iterator[tuple[ir.Node, ir.Value, str, str]]:
    for value in (*graph.initializers.values(), *(n.outputs[0] for n in graph if n.op_type == "Constant")):
        array = _float_constant(value)
        if array is None:
            continue
        fault, scale_fault = constant_fault(array, form), _scale_fault(array, form)
        for node, _ in value.uses():
            why = scale_fault if node.op_type in _QDQ else fault
            if not why:
                continue
            if is_mask(node, array, form):
                yield node, value, "mask", f"{array.min():.3g} stands for 'masked' and is cut off at {MASKED:g}"
            else:
                yield node, value, "constant", why


def constant_fault(array: np.ndarray, form: Form = FP16) -> str:
    """Why a float32 constant cannot be stored in ``form``; empty when it can."""
    if not np.isfinite(array).all():
        return "it holds infinity or NaN"
    size = np.abs(array)
    largest = float(size.max(initial=0.0))
    if largest > form.largest:
        return f"its largest value, {largest:.3g}, is beyond {form.name} ({form.largest:g})"
    used = size[size > 0]
    if not used.size or float(used.min()) >= form.smallest:
        return ""
    loses = f"below 2^{int(np.log2(form.smallest))}, where {form.name} loses its digits"
    if array.size <= _FEW:
        return f"{float(used.min()):.3g} is {loses}"
    # Small values among ordinary ones round to an error that the ordinary ones have as well.
    typical = float(np.sqrt(np.mean(np.square(used, dtype=np.float64))))
    return f"it is {typical:.2g} on average, {loses}" if typical < form.smallest else ""


def _scale_fault(array: np.ndarray, form: Form) -> str:
    """Why the scale of a Q/DQ cannot be fp16: it would be rounded by more than the numbers that it multiplies."""
    if form is not FP16:
        return ""
    with np.errstate(over="ignore", invalid="ignore"):
        off = np.abs(array.astype(np.float16).astype(np.float32) - array)
    return "" if (off <= np.abs(array) * 2.0**-8).all() else f"fp16 cannot hold its scale of {float(array.min()):.3g}"


def _float_constant(value: ir.Value) -> np.ndarray | None:
    import onnx_ir as ir

    if value.dtype != ir.DataType.FLOAT or value.is_graph_input():
        return None
    if value.const_value is not None:
        return np.asarray(value.const_value.numpy())
    return array_of(value)


def is_mask(node: ir.Node, array: np.ndarray, form: Form = FP16) -> bool:
    """A constant with numbers far below zero, none far above, that goes to a softmax by adding and choosing alone."""
    return bool(array.min() < -form.largest and array.max() <= form.largest) and _reaches_softmax(node)


def _reaches_softmax(node: ir.Node) -> bool:
    seen: set[ir.Node] = set()
    waiting = [node]
    reached = False
    while waiting:
        current = waiting.pop()
        if current.op_type in ("Softmax", "Attention"):
            reached = True
        elif current.op_type not in _MASKING:
            return False
        elif current not in seen:
            seen.add(current)
            waiting += [use.node for use in current.outputs[0].uses()]
    return reached


def _values_behind_masks(graph: ir.Graph) -> set[ir.Value]:
    """Values that hold mask constants, so that their size says nothing: those between the constant and the softmax."""
    found: set[ir.Value] = set()
    for value in (*graph.initializers.values(), *(n.outputs[0] for n in graph if n.op_type == "Constant")):
        array = _float_constant(value)
        if array is None or not array.size or array.min() > -1e4:
            continue
        waiting = [node for node, _ in value.uses() if _reaches_softmax(node)]
        while waiting:
            node = waiting.pop()
            if node.op_type in _MASKING and node.outputs[0] not in found:
                found.add(node.outputs[0])
                waiting += [use.node for use in node.outputs[0].uses()]
    return found


def clamp_masks(model: ir.Model, form: Form = FP16) -> dict[str, float]:
    """Cut mask constants off at `MASKED`, in place; returns the smallest number that each constant held."""
    graph = model.graph
    clamped: dict[str, float] = {}
    for value in (*list(graph.initializers.values()), *[n.outputs[0] for n in graph if n.op_type == "Constant"]):
        array = _float_constant(value)
        if array is None or not array.size:
            continue
        for node, index in list(value.uses()):
            if is_mask(node, array, form):
                clamped[value.name or ""] = float(array.min())
                safe = add_constant(graph, f"{value.name}.{form.name}_mask", np.maximum(array, np.float32(MASKED)))
                node.replace_input_with(index, safe)
    return clamped


# --- squares and sums ---


def _squares(graph: ir.Graph, form: Form) -> Iterator[tuple[ir.Node, ir.Value, str, str]]:
    why = {
        "fp16": "a sum of squares overflows from |x| = 256 on and vanishes below 2^-12",
        "bf16": "what is left of a difference of means has hardly a digit in bf16",
    }[form.name]
    for node in graph:
        if node.op_type in _SUMS_OF_SQUARES:
            reducers = [node]
        elif _is_square(node):
            reducers = [use.node for use in node.outputs[0].uses() if use.node.op_type in ("ReduceMean", "ReduceSum")]
        else:
            continue
        for reducer in reducers:
            for member in (*_centring(node), node, reducer, *_normalising(reducer)):
                yield member, node.outputs[0], "square", why


def _is_square(node: ir.Node) -> bool:
    if node.op_type == "Mul":
        return node.inputs[0] is node.inputs[1]
    return node.op_type == "Pow" and scalar_of(node.inputs[1]) == 2


def _centring(square: ir.Node) -> list[ir.Node]:
    """The subtraction of the mean in front of a variance."""
    sub = square.inputs[0].producer() if square.inputs[0] is not None else None
    if sub is None or sub.op_type != "Sub" or sub.inputs[1] is None:
        return []
    mean = sub.inputs[1].producer()
    return [mean, sub] if mean is not None and mean.op_type == "ReduceMean" else []


def _normalising(reducer: ir.Node) -> list[ir.Node]:
    """What is made of the sum (epsilon, root, guard), up to and including the division by it."""
    members: dict[ir.Node, None] = {}
    waiting = [use.node for use in reducer.outputs[0].uses()]
    while waiting:
        node = waiting.pop()
        if node in members:
            continue
        if node.op_type in _STATISTICS | {"Greater", "GreaterOrEqual", "Less", "LessOrEqual"}:
            members[node] = None
            if node.op_type in _STATISTICS:
                waiting += [use.node for use in node.outputs[0].uses()]
        elif node.op_type in ("Div", "Mul"):
            members[node] = None
    return list(members)


def _sums(graph: ir.Graph, form: Form) -> Iterator[tuple[ir.Node, ir.Value, str, str]]:
    for node in graph:
        value = node.inputs[0] if node.inputs else None
        if node.op_type not in _SUMS or value is None or not _is_float(value):
            continue
        terms = _terms(node, value)
        if terms is None:
            yield node, value, "sum", "it adds up a dynamic axis: nothing bounds the number of terms"
        elif terms > form.counts_to:
            yield node, value, "sum", f"it adds up {terms} terms, and {form.name} counts to {form.counts_to}"


def _terms(node: ir.Node, value: ir.Value) -> int | None:
    """How many numbers go into one result; None when an axis among them is dynamic or unknown."""
    if value.shape is None:
        return None
    if "axes" in node.attributes:
        axes: list[int] | None = list(node.attributes["axes"].as_ints())
    elif len(node.inputs) > 1 and node.inputs[1] is not None:
        axes = integers_of(node.inputs[1])
    else:
        axes = list(range(len(value.shape)))
    if axes is None:
        return None
    sizes = [value.shape[axis] for axis in axes]
    return int(np.prod([int(size) for size in sizes])) if all(isinstance(size, int) for size in sizes) else None


# --- positions: indices and angles ---


def _positions(graph: ir.Graph, form: Form) -> Iterator[tuple[ir.Node, ir.Value, str, str]]:
    """Angles, and float arithmetic that ends as an index, with what leads up to them from integers."""
    for node in graph:
        value = node.inputs[0] if node.inputs else None
        if value is None or not _is_float(value):
            continue
        if node.op_type in ("Sin", "Cos"):
            what, why = (
                "angle",
                f"from {form.counts_to} on, {form.name} has no digits for an angle's part below 2 pi",
            )
            members = [node, *_ancestors(value)]
        elif node.op_type == "Cast" and not _is_float(node.outputs[0]):
            what, why = "index", f"it is rounded to an integer, and {form.name} would round it differently"
            members = _ancestors(value)
        else:
            continue
        for member in members:
            yield member, value, what, why


def _ancestors(value: ir.Value) -> list[ir.Node]:
    """The float arithmetic that made a value from integers and constants; empty where data of the model goes in."""
    members: dict[ir.Node, None] = {}
    waiting = [value]
    while waiting:
        current = waiting.pop()
        node = current.producer()
        if not _is_float(current) or current.const_value is not None or (node is not None and node in members):
            continue
        if node is None or node.op_type not in _POSITIONAL:
            return []
        members[node] = None
        waiting += [operand for operand in node.inputs if operand is not None]
    return list(members)


def _is_float(value: ir.Value) -> bool:
    import onnx_ir as ir

    return value.dtype is None or value.dtype == ir.DataType.FLOAT


# --- ranges ---


def _ranges(
    graph: ir.Graph, ranges: Ranges, behind_masks: set[ir.Value], form: Form
) -> Iterator[tuple[ir.Node, ir.Value, str, str]]:
    """Values that were too large or too small for ``form``: who makes them and who reads them stays in fp32."""
    values = [*graph.inputs, *(output for node in graph for output in node.outputs)]
    for value in values:
        largest = ranges.largest.get(value.name or "", 0.0)
        if value in behind_masks or largest == 0.0:
            continue
        if largest * _HEADROOM > form.largest:
            why = f"{value.name} reaches {largest:.4g} on {ranges.source}, and {form.name} ends at {form.largest:g}"
        elif largest < form.smallest:
            why = f"{value.name} stays below {largest:.2g} on {ranges.source}, where {form.name} loses its digits"
        else:
            continue
        producer = value.producer()
        for node in (*([producer] if producer is not None else []), *(use.node for use in value.uses())):
            yield node, value, "range", why
