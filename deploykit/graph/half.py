"""A strongly typed graph of 16-bit floats: every float32 value becomes one, except around nodes that are kept in fp32.

Inputs and outputs of the graph keep their types. A Cast stands only where a value passes from one type to the other.
What the operator's schema does not offer in that type (the scales of a Resize, contrib operators) stays fp32 as well.

onnxruntime's CPU provider runs an fp16 graph and takes out the rounding between two operators, so what overflows in
fp16 does not overflow there; most of bf16 it does not run. `rounded` writes the rounding out, and shows on any CPU what
16-bit arithmetic gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from deploykit.errors import ExportError
from deploykit.graph.ranges import MOVING
from deploykit.graph.weights import constant_bytes

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

# Operators that make floats out of none, and which of their attributes says so.
_MAKERS = {"Cast": "to", "ConstantOfShape": "value"}
# From the first of these opsets to the second nothing changed but the types that operators take: Conv, Sin, Gelu and
# others learnt bf16.
_ALIKE_FROM, _BF16_OPSET = 20, 22
# What they give are numbers that they were given, which are rounded already.
_EXACT = MOVING | {"Abs", "Max", "Min", "Neg", "Relu", "Where"}
_SHORT = {"FLOAT16": "fp16", "BFLOAT16": "bf16"}


@dataclass(frozen=True)
class Halved:
    """How many nodes compute in 16 bits, how many Casts were put in, which nodes stayed in fp32 and why (by name)."""

    nodes_half: int
    casts: int
    kept_fp32: dict[str, str]


def typed(model: onnx.ModelProto) -> ir.Model:
    """The model with a type on every value and a name on every node, its constants as initializers."""
    import onnx
    import onnx_ir as ir
    import onnx_ir.passes.common as passes

    inferred = onnx.shape_inference.infer_shapes(model) if constant_bytes(model) < 1 << 30 else model
    graph_model = ir.from_proto(inferred)
    for step in (passes.InlinePass(), passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)):
        step(graph_model)
    passes.NameFixPass()(graph_model)
    return graph_model


def to_half(model: ir.Model, kept: Mapping[str, str], form: Literal["fp16", "bf16"] = "fp16") -> Halved:
    """Turn the graph of a `typed` model into arithmetic of ``form``, in place; ``kept`` are nodes' names with reasons.

    Raises `ExportError` when a name in ``kept`` is no node of the graph.
    """
    import onnx_ir as ir

    graph = model.graph
    dtype = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}[form]
    names = {node.name for node in graph}
    for name in kept:
        if name not in names:
            raise ExportError(f"there is no node '{name}' to keep in fp32", hint="names come from the typed model")
    opsets = model.opset_imports
    if form == "bf16" and _ALIKE_FROM <= opsets.get("", 0) < _BF16_OPSET:
        opsets[""] = _BF16_OPSET
    reasons = dict(kept)
    for node in graph:
        reason = "" if node.name in reasons else _unfit(node, opsets, dtype)
        if reason:
            reasons[node.name or ""] = reason
    _absorb(graph, reasons)
    half = {node for node in graph if node.name not in reasons and _touches_float(node)}
    casts = _retype(graph, half, opsets, dtype)
    return Halved(len(half), casts, {name: why for name, why in reasons.items() if why})


def _unfit(node: ir.Node, opsets: Mapping[str, int], dtype: ir.DataType) -> str:
    """Why a node that handles floats has no form of ``dtype``; empty when it has one, or handles none."""
    if not _touches_float(node):
        return ""
    if any(attribute.type.name in ("GRAPH", "GRAPHS") for attribute in node.attributes.values()):
        return f"{node.op_type} holds graphs of its own"
    if any(output.type is None for output in node.outputs):
        return f"the type of what {node.op_type} gives is not known"
    if not any(_is_float(value) for value in node.inputs) and node.op_type not in _MAKERS:
        return f"{node.op_type} makes float32 by itself"
    outputs = [_allows(node, opsets, i, dtype, output=True) for i, v in enumerate(node.outputs) if _is_float(v)]
    inputs = [_allows(node, opsets, i, dtype) for i, value in enumerate(node.inputs) if _is_float(value)]
    if not all(outputs) or (inputs and not any(inputs)):
        return f"{node.op_type} has no {_SHORT[dtype.name]} form"
    return ""


def _allows(node: ir.Node, opsets: Mapping[str, int], index: int, dtype: ir.DataType, *, output: bool = False) -> bool:
    """Whether the operator's schema takes (or gives) ``dtype`` at this position."""
    import onnx

    version = node.version or opsets.get(node.domain, 1)
    if not onnx.defs.has(node.op_type, version, node.domain):
        return False
    schema = onnx.defs.get_schema(node.op_type, version, node.domain)
    formals = schema.outputs if output else schema.inputs
    if not formals:
        return False
    wanted = formals[min(index, len(formals) - 1)].type_str
    name = f"tensor({dtype.name.lower()})"
    if wanted == name:
        return True
    return any(name in c.allowed_type_strs for c in schema.type_constraints if c.type_param_str == wanted)


def _is_float(value: ir.Value | None) -> bool:
    import onnx_ir as ir

    return value is not None and value.dtype == ir.DataType.FLOAT


def _touches_float(node: ir.Node) -> bool:
    return any(_is_float(value) for value in (*node.inputs, *node.outputs)) or any(
        output.type is None for output in node.outputs
    )


def _absorb(graph: ir.Graph, reasons: dict[str, str]) -> None:
    """Keep what lies between fp32 nodes in fp32 too, where fp16 would only add two casts."""
    kept = {node for node in graph if node.name in reasons}
    inside = {n for n in graph if n not in kept and _touches_float(n) and n.op_type not in ("MatMul", "Gemm", "Conv")}
    neighbours = {node: _neighbours(node) for node in inside}
    shrinking = True
    while shrinking:
        outside = [node for node in inside if not neighbours[node] <= kept | inside]
        inside.difference_update(outside)
        shrinking = bool(outside)
    waiting = [node for node in inside if neighbours[node] & kept]
    while waiting:
        node = waiting.pop()
        if node in inside:
            inside.discard(node)
            reasons[node.name or ""] = "it lies between nodes that stay in fp32"
            waiting += neighbours[node] & inside


def _neighbours(node: ir.Node) -> set[ir.Node]:
    """The nodes that a node's float values, constants left out, come from and go to."""
    makers = {value.producer() for value in node.inputs if value is not None and _is_float(value)} - {None}
    return makers | {use.node for value in node.outputs if _is_float(value) for use in value.uses()}


def _retype(graph: ir.Graph, half: set[ir.Node], opsets: Mapping[str, int], dtype: ir.DataType) -> int:
    """Give every value its type and put the Casts in; returns how many Casts."""
    values = [*graph.inputs, *graph.initializers.values(), *(output for node in graph for output in node.outputs)]
    wants = {
        value: [(n, i) for n, i in value.uses() if n in half and _allows(n, opsets, i, dtype)]
        for value in values
        if _is_float(value)
    }
    for node in half:
        _make_half(node, dtype)
    return sum(_settle(graph, value, uses, half, dtype) for value, uses in wants.items())


def _make_half(node: ir.Node, dtype: ir.DataType) -> None:
    """Let a node that makes floats make ``dtype``."""
    import onnx_ir as ir

    attribute = _MAKERS.get(node.op_type)
    if attribute is None or not _is_float(node.outputs[0]):
        return
    if node.op_type == "Cast":
        node.attributes["to"] = ir.AttrInt64("to", int(dtype))
    else:
        given = node.attributes.get("value")
        array = np.zeros(1, np.float32) if given is None else given.as_tensor().numpy()
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(array.astype(dtype.numpy())))


def _settle(
    graph: ir.Graph, value: ir.Value, wants: list[tuple[ir.Node, int]], half: set[ir.Node], dtype: ir.DataType
) -> int:
    """Make one value ``dtype`` or leave it fp32, and cast it for those who want the other; returns the Casts put in."""
    import onnx_ir as ir

    producer = value.producer()
    if producer is not None and producer in half:
        others = [(node, index) for node, index in value.uses() if (node, index) not in wants]
        value.dtype = dtype
        if value.is_graph_output():
            return _cast_output(graph, value, producer, others)
        return _cast(graph, value, producer, others, ir.DataType.FLOAT)
    if not wants:
        return 0
    if value.const_value is not None and not value.is_graph_input():
        _halve_initializer(graph, value, wants, dtype)
        return 0
    return _cast(graph, value, producer, wants, dtype)


def _cast(
    graph: ir.Graph, value: ir.Value, producer: ir.Node | None, uses: list[tuple[ir.Node, int]], dtype: ir.DataType
) -> int:
    import onnx_ir as ir

    if not uses:
        return 0
    cast = ir.node("Cast", [value], {"to": int(dtype)}, name=f"{value.name}.to_{dtype.name.lower()}")
    output = cast.outputs[0]
    output.name, output.dtype, output.shape = f"{value.name}.{dtype.name.lower()}", dtype, value.shape
    for node, index in uses:
        node.replace_input_with(index, output)
    if producer is None:
        graph.insert_before(graph[0], cast)
    else:
        graph.insert_after(producer, cast)
    return 1


def _cast_output(graph: ir.Graph, value: ir.Value, producer: ir.Node, others: list[tuple[ir.Node, int]]) -> int:
    """An output of the graph stays fp32 and keeps its name."""
    import onnx_ir as ir

    name = value.name or ""
    cast = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)}, name=f"{name}.to_float")
    output = cast.outputs[0]
    output.dtype, output.shape, output.type = ir.DataType.FLOAT, value.shape, ir.TensorType(ir.DataType.FLOAT)
    for i, graph_output in enumerate(graph.outputs):
        if graph_output is value:
            graph.outputs[i] = output
    for node, index in others:
        node.replace_input_with(index, output)
    assert value.dtype is not None
    value.name, output.name = f"{name}.{value.dtype.name.lower()}", name
    graph.insert_after(producer, cast)
    return 1


def _halve_initializer(graph: ir.Graph, value: ir.Value, wants: list[tuple[ir.Node, int]], dtype: ir.DataType) -> None:
    """Store a constant in ``dtype`` for those who want it; the fp32 one goes when nobody reads it any more."""
    import onnx_ir as ir

    assert value.const_value is not None
    name = value.name or ""
    with np.errstate(over="ignore"):
        tensor = ir.tensor(value.const_value.numpy().astype(dtype.numpy()), name=f"{name}.{_SHORT[dtype.name]}")
    stored = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(stored)
    for node, index in wants:
        node.replace_input_with(index, stored)
    if not value.uses() and not value.is_graph_output():
        del graph.initializers[name]


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The 16-bit graph as fp32 arithmetic whose every 16-bit result is rounded: what the engine will compute.

    Products are added up in fp32 and rounded once, as matrix units do. Quantized weights are dequantized here, not in
    every run; the numbers stay.
    """
    import onnx_ir as ir

    from deploykit.quantize.qdq import fold_weights

    halves = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    graph_model = typed(model)
    graph = graph_model.graph
    fold_weights(graph_model)
    for value in list(graph.initializers.values()):
        if value.dtype in halves and value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
            value.dtype = ir.DataType.FLOAT
    for node in list(graph):
        outputs = [(output, output.dtype) for output in node.outputs if output.dtype in halves]
        for output, dtype in outputs:
            assert dtype is not None
            output.dtype = ir.DataType.FLOAT
            if node.op_type not in _EXACT:
                _round_after(graph, node, output, dtype)
        if outputs and node.op_type == "Cast":
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
        elif outputs and node.op_type == "ConstantOfShape":
            array = node.attributes["value"].as_tensor().numpy().astype(np.float32)
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(array))
    return ir.to_proto(graph_model)


def _round_after(graph: ir.Graph, node: ir.Node, value: ir.Value, dtype: ir.DataType) -> None:
    import onnx_ir as ir

    down = ir.node("Cast", [value], {"to": int(dtype)})
    up = ir.node("Cast", [down.outputs[0]], {"to": int(ir.DataType.FLOAT)})
    for number, cast in enumerate((down, up)):
        cast.name = f"{value.name}.round.{number}"
        cast.outputs[0].name = f"{value.name}.rounded.{number}"
    down.outputs[0].dtype, up.outputs[0].dtype = dtype, ir.DataType.FLOAT
    for use, index in list(value.uses()):
        if use is not down:
            use.replace_input_with(index, up.outputs[0])
    graph.insert_after(node, [down, up])
