"""What TensorRT needs of a quantized graph, checked before it is asked.

TensorRT (10 and 11) multiplies in int8 or float8e4m3fn what stands between QuantizeLinear and DequantizeLinear without
zero points, with one scale for an activation, one for each output channel of a weight, and biases that stay float; in
its strongly typed networks nothing is converted unasked. Of what onnxruntime's quantizer and its own operators make, it
refuses a part, with messages that seldom name the cause; another part, as scales along the wrong axis, it takes and
computes in float without a word. `check` names the node, the fact and the fix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from deploykit.errors import CheckError
from deploykit.graph.edit import perm_of
from deploykit.quantize.products import constant_of

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

TYPES = ("INT8", "FLOAT8E4M3FN")
_QDQ = ("QuantizeLinear", "DequantizeLinear")
_OPERATOR_FORMS = frozenset(
    {"ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul"}
)  # fmt: skip
# Q/DQ of float8 came with this opset.
_FLOAT8_OPSET = 19


@dataclass(frozen=True)
class Violation:
    """``rule`` in one or two words, the ``node`` (its name, or its output), what is wrong there, and what to do."""

    rule: str
    node: str
    fact: str
    fix: str

    def __str__(self) -> str:
        return f"{self.node}: {self.fact}"


def check(model: onnx.ModelProto | ir.Model) -> tuple[Violation, ...]:
    """Everything in the model that TensorRT refuses or leaves in float, in the graph's order."""
    import onnx_ir as ir

    graph_model = model if isinstance(model, ir.Model) else ir.from_proto(model)
    opset, types = graph_model.opset_imports.get("", 0), _types(graph_model.graph)
    return tuple(
        Violation(rule, node.name or str(node.outputs[0].name), fact, fix)
        for node in graph_model.graph.all_nodes()
        for rule, fact, fix in (*_faults(node, opset), *_mixed(node, types))
    )


def enforce(model: onnx.ModelProto | ir.Model) -> None:
    """Raise `CheckError` with the first violations and their number when there is one."""
    found = check(model)
    if not found:
        return
    more = f", and {len(found) - 3} more" if len(found) > 3 else ""
    raise CheckError(
        f"TensorRT cannot run this graph as it is quantized: {'; '.join(map(str, found[:3]))}{more}",
        hint="; ".join(dict.fromkeys(violation.fix for violation in found[:3])),
    )


Fault = tuple[str, str, str]


def _faults(node: ir.Node, opset: int) -> Iterator[Fault]:
    if node.domain not in ("", "ai.onnx"):
        fix = "lower the portable model, which holds standard operators alone, before any engine's own fusions"
        yield "domain", f"{node.op_type} is of the domain '{node.domain}', which is not ONNX's", fix
    elif node.op_type in _OPERATOR_FORMS:
        fix = "write it as DequantizeLinear → the float operator, with QuantizeLinear in front"
        yield "operator form", f"{node.op_type} computes on integers itself", fix
    elif node.op_type in _QDQ:
        for rule in (_type, _scale, _zero_point, _granularity, _readers):
            yield from rule(node, opset)
    elif node.op_type in ("Conv", "ConvTranspose", "Gemm"):
        yield from _bias(node)


def _types(graph: ir.Graph) -> dict[ir.Value, ir.DataType]:
    """The element type of first outputs and of what the graph is given, followed where the model does not say it."""
    known: dict[ir.Value, ir.DataType] = {}
    for node in graph.all_nodes():
        for value in node.inputs:
            if value is not None and value.dtype is not None:
                known.setdefault(value, value.dtype)
        made = node.outputs[0].dtype or _made(node, known)
        if made is not None:
            known[node.outputs[0]] = made
    return known


def _made(node: ir.Node, known: Mapping[ir.Value, ir.DataType]) -> ir.DataType | None:
    """The type of a node's first output by that of its inputs; None for what is no float or cannot be told."""
    import onnx_ir as ir

    if node.op_type == "Cast":
        return ir.DataType(node.attributes["to"].as_int())
    if node.op_type in _NO_FLOATS:
        return None
    place = _TYPE_FROM.get(node.op_type, 0)
    value = node.inputs[place] if len(node.inputs) > place else None
    return None if value is None else known.get(value)


def _mixed(node: ir.Node, types: Mapping[ir.Value, ir.DataType]) -> Iterator[Fault]:
    """A strongly typed network converts nothing by itself."""
    wanted = node.inputs[_ONE_TYPE[node.op_type]] if node.op_type in _ONE_TYPE else ()
    found = [types[value] for value in wanted if value is not None and value in types]
    names = list(dict.fromkeys(dtype.name.lower() for dtype in found if dtype.is_floating_point()))
    if len(names) > 1:
        fix = "put a Cast in front of one of them: a strongly typed network converts nothing by itself"
        yield "mixed types", f"{node.op_type} reads {' and '.join(names)}", fix


# Whose floats must be of one type, and which inputs that is said of.
_ONE_TYPE: Final = {
    **dict.fromkeys(
        ("Add", "Concat", "Conv", "ConvTranspose", "Div", "Gemm", "LayerNormalization", "MatMul", "Max", "Mean", "Min"),
        slice(None),
    ),
    **dict.fromkeys(("Mul", "Sub", "Sum"), slice(None)),
    "Where": slice(1, 3),
}
# The input whose type the output has, where that is not the first.
_TYPE_FROM: Final = {"CastLike": 1, "DequantizeLinear": 1, "Where": 1}
_NO_FLOATS: Final = frozenset(
    {"And", "ArgMax", "ArgMin", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual"}
    | {"NonZero", "Not", "Or", "QuantizeLinear", "Shape", "Size"}
)


def _type(node: ir.Node, opset: int) -> Iterator[Fault]:
    found = _stored_type(node)
    if found is None:
        yield "type", "the type that it stores is not known", "run shape inference on the model"
    elif found == "INT32":
        fix = "leave the bias float: TensorRT adds it to the float result"
        yield "int32", "it dequantizes int32, which is how biases are quantized elsewhere", fix
    elif found not in TYPES:
        fix = "quantize with int8, symmetric, or float8e4m3fn"
        if found == "UINT8" and node.op_type == "QuantizeLinear" and len(node.inputs) < 3:
            fix = "give it a zero point of int8 zeros: without one its type is uint8"
        yield "type", f"it stores {found.lower()}, and only int8 and float8e4m3fn are taken", fix
    elif found == "FLOAT8E4M3FN" and opset < _FLOAT8_OPSET:
        fix = f"export with opset {_FLOAT8_OPSET} or later"
        yield "opset", f"float8 came with opset {_FLOAT8_OPSET}, and the model is of opset {opset}", fix


def _stored_type(node: ir.Node) -> str | None:
    """The name of the quantized type on the integer side of a Q or DQ."""
    import onnx_ir as ir

    if node.op_type == "DequantizeLinear":
        value = node.inputs[0]
        if value is not None and value.dtype is None and value.producer() is not None:
            maker = value.producer()
            assert maker is not None
            return _stored_type(maker) if maker.op_type == "QuantizeLinear" else None
        return None if value is None or value.dtype is None else value.dtype.name
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if zero is not None:
        array = constant_of(zero)
        dtype = ir.DataType.from_numpy(array.dtype) if array is not None else zero.dtype
        return None if dtype is None else dtype.name
    chosen = node.attributes["output_dtype"].as_int() if "output_dtype" in node.attributes else 0
    return ir.DataType(chosen).name if chosen else "UINT8"


def _scale(node: ir.Node, opset: int) -> Iterator[Fault]:
    scale = constant_of(node.inputs[1])
    if scale is None:
        fix = "calibrate: TensorRT takes no scales that are computed while it runs"
        yield "scale", "its scale is not a constant", fix
    elif not np.isfinite(scale.astype(np.float64)).all():
        yield "scale", "its scale holds NaN or infinity", "look at the calibration inputs and at the weight"
    elif (scale.astype(np.float64) <= 0).any():
        smallest = float(scale.astype(np.float64).min())
        fix = "give channels of zeros the scale 1; a scale below 6e-8 becomes zero in fp16: keep that product in fp32"
        yield "scale", f"its scale is {smallest:g} in places, and must be positive", fix


def _zero_point(node: ir.Node, opset: int) -> Iterator[Fault]:
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if zero is None:
        return
    array = constant_of(zero)
    if array is None:
        yield "zero point", "its zero point is not a constant", "leave it out, or give zeros"
    elif array.astype(np.float32).any():
        largest = array.astype(np.float32).reshape(-1)[np.abs(array.astype(np.float32)).argmax()]
        yield "zero point", f"its zero point is {largest:g}, and must be 0", "quantize symmetrically"


def _granularity(node: ir.Node, opset: int) -> Iterator[Fault]:
    """One scale for an activation; one for each output channel of a weight."""
    scale = constant_of(node.inputs[1])
    if scale is None or scale.size == 1:
        return
    weight = constant_of(node.inputs[0])
    if weight is None:
        fix = "use one scale for the whole activation; SmoothQuant evens its channels out before"
        yield "per channel", f"it has {scale.size} scales for an activation", fix
        return
    if scale.ndim > 1:
        yield "blocks", f"its scales have the shape {list(scale.shape)}: blocks", "use one scale per output channel"
        return
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    axis %= weight.ndim
    if weight.shape[axis] != scale.size:
        fix = "set axis to the weight's output channels"
        yield "axis", f"it has {scale.size} scales for the {weight.shape[axis]} channels of axis {axis}", fix
        return
    for reader, wanted in _output_channels(node, weight.ndim):
        if axis != wanted:
            fix = f"quantize the weight along axis {wanted}"
            yield "axis", f"its scales run along axis {axis}, and the output channels of {reader} along {wanted}", fix


def _output_channels(node: ir.Node, rank: int) -> Iterator[tuple[str, int]]:
    """(product, the axis of the weight that holds its output channels), for every product that reads this weight."""
    waiting: list[tuple[ir.Value, list[int]]] = [(node.outputs[0], list(range(rank)))]
    while waiting:
        value, axes = waiting.pop()
        for reader, index in value.uses():
            if reader.op_type == "Transpose":
                waiting.append((reader.outputs[0], [axes[axis] for axis in perm_of(reader)]))
            elif reader.op_type in ("Cast", "Identity", "QuantizeLinear", "DequantizeLinear") and index == 0:
                waiting.append((reader.outputs[0], axes))
            elif index == 1 and (find := _CHANNELS.get(reader.op_type)) is not None:
                yield reader.name or reader.op_type, axes[find(reader)]


def _gemm_channels(node: ir.Node) -> int:
    return 0 if "transB" in node.attributes and node.attributes["transB"].as_int() else 1


_CHANNELS: dict[str, Callable[[ir.Node], int]] = {
    "Conv": lambda node: 0,
    "ConvTranspose": lambda node: 1,
    "Gemm": _gemm_channels,
    "MatMul": lambda node: -1,
}


def _readers(node: ir.Node, opset: int) -> Iterator[Fault]:
    """What is quantized is dequantized before anything computes with it."""
    if node.op_type != "QuantizeLinear":
        return
    if node.outputs[0].is_graph_output():
        fix = "put a DequantizeLinear behind it: the model's outputs are float"
        yield "no DequantizeLinear", "what it quantizes is an output of the model", fix
    for reader, _ in node.outputs[0].uses():
        if reader.op_type not in ("DequantizeLinear", "Identity", "Reshape", "Transpose"):
            fix = "put a DequantizeLinear between the two"
            yield "no DequantizeLinear", f"{reader.op_type} reads what it quantizes without a DequantizeLinear", fix


def _bias(node: ir.Node) -> Iterator[Fault]:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    maker = None if bias is None else bias.producer()
    if maker is not None and maker.op_type == "DequantizeLinear":
        yield "bias", f"the bias of {node.op_type} is quantized", "leave the bias float"
