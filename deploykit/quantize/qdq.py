"""Puts QuantizeLinear and DequantizeLinear around products; every value that was there keeps its name.

An activation is quantized once for all products that read it; what else reads it goes on reading it in fp32. A weight
is stored quantized, behind a DequantizeLinear. Biases and all other arithmetic stay fp32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from deploykit.errors import ExportError
from deploykit.graph.edit import add_constant
from deploykit.quantize.products import Product, constant_of

if TYPE_CHECKING:
    import onnx_ir as ir

Activation = Literal["uint8", "int8", "float8e4m3fn"]

# Per-channel DequantizeLinear came with 13, float8 with 19.
_OPSETS = {"uint8": 13, "int8": 13, "float8e4m3fn": 19}
_LIMITS = {"uint8": (0, 255), "int8": (-127, 127)}
#: The largest number of float8e4m3fn.
FLOAT8_MAX = 448.0


@dataclass(frozen=True)
class Scheme:
    """How products are quantized.

    ``activation`` is the type of their inputs: uint8 with a zero point, or int8 or float8e4m3fn without one (weights
    then are float8e4m3fn too, else int8), by tensor. Weights are symmetric by output channel; ``reduce_range`` keeps
    them to 7 bits, so that no x86 kernel saturates when it adds two products of 8 bits in 16. ``attention`` quantizes
    the products of two activations as well. ``keep`` are kinds that stay fp32.
    """

    activation: Activation = "uint8"
    reduce_range: bool = False
    attention: bool = False
    keep: tuple[str, ...] = ()

    @property
    def symmetric(self) -> bool:
        """Whether activations have no zero point."""
        return self.activation != "uint8"

    @property
    def weight_limit(self) -> float:
        """The largest absolute value that a stored weight takes."""
        return FLOAT8_MAX if self.activation == "float8e4m3fn" else 63.0 if self.reduce_range else 127.0

    def takes(self, product: Product) -> bool:
        """Whether this product is quantized."""
        return (product.is_weighted or self.attention) and product.kind not in self.keep


@dataclass(frozen=True)
class Range:
    """An activation's quantization: real = scale * (stored - zero_point)."""

    scale: float
    zero_point: int = 0


@dataclass(frozen=True)
class Stored:
    """A quantized weight: ``values`` int8 (or float8e4m3fn) as the product reads it, ``scale`` float32 [channels]."""

    values: np.ndarray = field(repr=False)
    scale: np.ndarray = field(repr=False)
    axis: int


def float8() -> np.dtype[Any]:
    """Numpy's float8e4m3fn."""
    import ml_dtypes

    kind: np.dtype[Any] = np.dtype(ml_dtypes.float8_e4m3fn)
    return kind


def quantize_array(array: np.ndarray, at: Range, scheme: Scheme) -> np.ndarray:
    """The activation as the quantizer gives it back, float32: rounded, clipped, and dequantized."""
    if scheme.activation == "float8e4m3fn":
        clipped = np.clip(array / np.float32(at.scale), -FLOAT8_MAX, FLOAT8_MAX)
        return clipped.astype(float8()).astype(np.float32) * np.float32(at.scale)
    low, high = _LIMITS[scheme.activation]
    stored = np.rint(array * np.float32(1 / at.scale))
    stored += np.float32(at.zero_point)
    np.clip(stored, low, high, out=stored)
    stored -= np.float32(at.zero_point)
    stored *= np.float32(at.scale)
    return stored


def range_of(low: float, high: float, scheme: Scheme) -> Range:
    """The quantization that holds [low, high]; 0 is always in it, exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    tiny = float(np.finfo(np.float32).tiny)
    if scheme.symmetric:
        top = FLOAT8_MAX if scheme.activation == "float8e4m3fn" else 127.0
        return Range(max(-low, high, tiny * top) / top)
    scale = float(np.float32(max(high - low, tiny * 255.0) / 255.0))
    return Range(scale, int(np.clip(round(-low / scale), 0, 255)))


def insert(
    model: ir.Model,
    products: Iterable[Product],
    ranges: Mapping[str, Range],
    weights: Mapping[str, Stored],
    scheme: Scheme,
) -> int:
    """Quantize the products that the scheme takes, in place; returns how many.

    ``ranges`` are by activation, ``weights`` by the name of the constant. Raises `ExportError` when the model's opset
    has no such QuantizeLinear.
    """
    _check_opset(model, scheme)
    graph = model.graph
    nodes = {str(node.outputs[0].name): node for node in graph if node.outputs}
    quantized: dict[str, ir.Value] = {}
    count = 0
    for product in products:
        if not scheme.takes(product):
            continue
        node = nodes[product.output]
        count += 1
        for i, name in enumerate((product.activation, product.weight or product.other)):
            value = node.inputs[i]
            assert value is not None
            assert name is not None
            if name not in quantized:
                stored = weights.get(name) if i == 1 and product.is_weighted else None
                quantized[name] = (
                    _pair(graph, value, ranges[name], scheme) if stored is None else _weight(graph, value, stored)
                )
            node.replace_input_with(i, quantized[name])
    _remove_unread(graph)
    return count


def _check_opset(model: ir.Model, scheme: Scheme) -> None:
    have, need = model.opset_imports.get("", 0), _OPSETS[scheme.activation]
    if have < need:
        raise ExportError(
            f"the model is of opset {have}, and quantizing it to {scheme.activation} needs opset {need}",
            hint=f"export it again with opset {max(need, 20)}",
        )


def _pair(graph: ir.Graph, value: ir.Value, at: Range, scheme: Scheme) -> ir.Value:
    """Quantize an activation where it is made; returns it dequantized."""
    import onnx_ir as ir

    name = str(value.name)
    kind = float8() if scheme.activation == "float8e4m3fn" else np.dtype(scheme.activation)
    scale = add_constant(graph, f"{name}_scale", np.array(at.scale, np.float32))
    zero = add_constant(graph, f"{name}_zero_point", np.array(at.zero_point).astype(kind))
    quantize = ir.node("QuantizeLinear", [value, scale, zero], name=f"{name}_quantize")
    dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], scale, zero], name=f"{name}_dequantize")
    for node, suffix, like in ((quantize, "quantized", zero), (dequantize, "dequantized", value)):
        out = node.outputs[0]
        out.name, out.shape, out.dtype = f"{name}_{suffix}", value.shape, like.dtype
    maker = value.producer()
    if maker is None:
        graph.insert_before(graph[0], (quantize, dequantize))
    else:
        graph.insert_after(maker, (quantize, dequantize))
    return dequantize.outputs[0]


def _weight(graph: ir.Graph, value: ir.Value, stored: Stored) -> ir.Value:
    """Store a quantized weight; returns it dequantized."""
    import onnx_ir as ir

    name = str(value.name)
    values = add_constant(graph, f"{name}_quantized", stored.values)
    scale = add_constant(graph, f"{name}_scale", stored.scale.astype(np.float32))
    # No zero point: with one per channel, even of zeros, onnxruntime's kernel corrects for them in every call.
    node = ir.node("DequantizeLinear", [values, scale], {"axis": stored.axis}, name=f"{name}_dequantize")
    out = node.outputs[0]
    out.name, out.shape, out.dtype = f"{name}_dequantized", value.shape, value.dtype
    graph.insert_before(graph[0], node)
    return out


def fold_weights(model: ir.Model) -> dict[str, np.ndarray]:
    """Dequantize weights once, in place, instead of in every run of an engine that folds nothing; the numbers stay.

    What each DequantizeLinear of constants gives becomes an initializer of its name; returns them all.
    """
    import onnx_ir as ir

    graph, folded = model.graph, dict[str, np.ndarray]()
    for node in [node for node in graph if node.op_type == "DequantizeLinear"]:
        made, array = node.outputs[0], _dequantized(node)
        if array is None or made.is_graph_output():
            continue
        name = str(made.name)
        stored = add_constant(graph, f"{name}_folded", array)
        ir.convenience.replace_all_uses_with(made, stored)
        graph.remove(node, safe=True)
        graph.initializers.pop(str(stored.name))
        stored.name, folded[name] = name, array
        graph.register_initializer(stored)
    _remove_unread(graph)
    return folded


def pass_activations(model: ir.Model) -> dict[str, str]:
    """Take the Q/DQ pairs of activations out, in place; returns {what a pair gave: what it was given}."""
    import onnx_ir as ir

    graph, passed = model.graph, dict[str, str]()
    for node in [node for node in graph if node.op_type == "DequantizeLinear"]:
        made, quantize = node.outputs[0], node.inputs[0].producer() if node.inputs[0] is not None else None
        if quantize is None or quantize.op_type != "QuantizeLinear" or made.is_graph_output():
            continue
        given = quantize.inputs[0]
        assert given is not None
        passed[str(made.name)] = str(given.name)
        ir.convenience.replace_all_uses_with(made, given)
        graph.remove(node, safe=True)
        if not quantize.outputs[0].uses() and not quantize.outputs[0].is_graph_output():
            graph.remove(quantize, safe=True)
    _remove_unread(graph)
    return passed


def _dequantized(node: ir.Node) -> np.ndarray | None:
    """What a DequantizeLinear gives, in the float type of its result; None unless it reads constants, without zero
    point or blocks.
    """
    values, scale = constant_of(node.inputs[0]), constant_of(node.inputs[1])
    if values is None or scale is None or len(node.inputs) > 2 or "block_size" in node.attributes or scale.ndim > 1:
        return None
    dtype = node.outputs[0].dtype
    if dtype is None or not dtype.is_floating_point():
        return None
    shape = [1] * values.ndim
    if scale.ndim:
        shape[node.attributes["axis"].as_int() if "axis" in node.attributes else 1] = -1
    return np.asarray(values.astype(np.float32) * scale.astype(np.float32).reshape(shape)).astype(dtype.numpy())


def _remove_unread(graph: ir.Graph) -> None:
    """Take out the fp32 weights that nothing reads any more, and transposes of them."""
    for node in reversed(list(graph)):
        constant = node.op_type in ("Transpose", "Constant") and constant_of(node.outputs[0]) is not None
        if constant and not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del graph.initializers[name]
