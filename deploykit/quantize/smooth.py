"""Migrates outliers from activations into weights before both are quantized (SmoothQuant, arXiv:2211.10438).

A channel of an activation is divided by a factor, and the weights that read it are multiplied by it: the product stays,
and the activation's channels become alike, so that one scale fits all. The division costs nothing where it can be
folded into what makes the activation (`route`); elsewhere it is a Mul.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from deploykit.graph.edit import add_constant
from deploykit.quantize.observe import Observed
from deploykit.quantize.products import Product, as_matrix, constant_of
from deploykit.quantize.qdq import Scheme
from deploykit.quantize.rounding import search_range

if TYPE_CHECKING:
    import onnx_ir as ir

Way = Literal["norm", "linear", "mul"]

# Above 0.8 channels follow their largest value so closely that what calibration did not show is clipped: at 0.95
# MiniLM's drift on other texts doubles, while the error on the calibration inputs goes on falling.
ALPHAS = (0.5, 0.65, 0.8)
# Below this share of its error taken away, a migration is not worth its rounding; a Mul must pay for its time.
_GAIN = {"norm": 0.02, "linear": 0.02, "mul": 0.3}
# Enough to compare migrations by; the range that is used is searched more finely.
_CLIPS = (1.0, 0.75, 0.5)
# Operators that let a positive factor through.
_HOMOGENEOUS = frozenset({"Identity", "LeakyRelu", "Relu"})


@dataclass(frozen=True)
class Site:
    """An activation and the weighted products that read it, which share one quantizer."""

    activation: str
    products: tuple[Product, ...]


@dataclass(frozen=True)
class Route:
    """Where a division of an activation's channels can go: the constants (and the axis) that are divided instead."""

    way: Way
    constants: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Migration:
    """``factors`` float32 [C] that divide an activation, the ``alpha`` they came from, and the product's relative
    squared error from its quantized input before and after.
    """

    activation: str
    way: Way
    alpha: float
    before: float
    after: float
    factors: np.ndarray = field(repr=False)


def sites(products: Iterable[Product]) -> list[Site]:
    """The weighted products by the activation that they read, in the order of the graph."""
    grouped: dict[str, list[Product]] = {}
    for product in products:
        if product.is_weighted:
            grouped.setdefault(product.activation, []).append(product)
    return [Site(name, tuple(of)) for name, of in grouped.items()]


def search(model: ir.Model, site: Site, seen: Observed, scheme: Scheme, *, allow_mul: bool) -> Migration | None:
    """The migration that takes most of the error away; None where none is possible or worthwhile."""
    values = values_of(model)
    found = route(values, site, allow_mul=allow_mul)
    if found is None:
        return None
    weight = stacked(values, site)
    low, high = float(seen.low.min()), float(seen.high.max())
    before = search_range(seen.rows, low, high, weight, scheme, _CLIPS).error
    best: Migration | None = None
    for alpha in ALPHAS:
        factors = factors_of(seen.largest, np.abs(weight).max(0), alpha)
        low, high = float((seen.low / factors).min()), float((seen.high / factors).max())
        after = search_range(seen.rows / factors, low, high, weight * factors, scheme, _CLIPS).error
        if best is None or after < best.after:
            best = Migration(site.activation, found.way, alpha, before, after, factors)
    assert best is not None
    return best if best.after < before * (1 - _GAIN[found.way]) else None


def factors_of(largest_input: np.ndarray, largest_weight: np.ndarray, alpha: float) -> np.ndarray:
    """``max|X|^a / max|W|^(1 - a)`` by channel, float32, scaled to a geometric mean of 1; 1 for channels of zeros."""
    alive = (largest_input > 0) & (largest_weight > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = alpha * np.log(largest_input) - (1 - alpha) * np.log(largest_weight)
    if not alive.any():
        return np.ones_like(largest_input, np.float32)
    logs = np.where(alive, logs - logs[alive].mean(), 0.0)
    return np.asarray(np.exp(np.clip(logs, -10, 10)), np.float32)


def apply(model: ir.Model, site: Site, migration: Migration) -> Site:
    """Carry a migration out, in place; returns the site with the activation that its products now read."""
    values = values_of(model)
    found = route(values, site, allow_mul=migration.way == "mul")
    assert found is not None
    factors = migration.factors
    for name, axis in found.constants:
        _scale_constant(values[name], 1 / factors, axis)
    for product in {product.weight: product for product in site.products}.values():
        assert product.weight is not None
        _scale_constant(values[product.weight], factors, 1 - product.axis)
    if found.way != "mul":
        return site
    return _through_mul(model.graph, values[site.activation], site, factors)


def scaled(seen: Observed, factors: np.ndarray) -> Observed:
    """What was observed, as it is once the activation is divided."""
    return replace(
        seen, low=seen.low / factors, high=seen.high / factors, mean=seen.mean / factors, rows=seen.rows / factors
    )


def stacked(values: Mapping[str, ir.Value], site: Site) -> np.ndarray:
    """The weights of all products of a site, float32 [sum of out, in]."""
    parts = []
    for product in site.products:
        array = constant_of(values[str(product.weight)])
        assert array is not None
        parts.append(as_matrix(product, array))
    return np.concatenate(parts)


def route(values: Mapping[str, ir.Value], site: Site, *, allow_mul: bool) -> Route | None:
    """Where the division goes: into a LayerNormalization, into a linear layer before, or into a Mul of its own."""
    activation = values[site.activation]
    if any(product.op == "Conv" or not _only_reader(values, site, product) for product in site.products):
        return None
    readers = {product.output for product in site.products}
    alone = all(use.node.outputs[0].name in readers for use in activation.uses()) and not activation.is_graph_output()
    if alone:
        constants = _norm(activation) or _linear(activation)
        if constants is not None:
            return Route("norm" if _norm(activation) else "linear", constants)
    return Route("mul") if allow_mul else None


def _only_reader(values: Mapping[str, ir.Value], site: Site, product: Product) -> bool:
    """Whether nothing outside the site reads a product's weight."""
    readers = {p.output for p in site.products if p.weight == product.weight}
    return {use.node.outputs[0].name for use in values[str(product.weight)].uses()} == readers


def _norm(activation: ir.Value) -> tuple[tuple[str, int], ...] | None:
    """The scale and bias of the normalization over the last axis that makes the activation."""
    node = activation.producer()
    if node is None or node.op_type != "LayerNormalization":
        return None
    if "axis" in node.attributes and node.attributes["axis"].as_int() != -1:
        return None
    return _foldable(node.inputs[1:])


def _linear(activation: ir.Value) -> tuple[tuple[str, int], ...] | None:
    """The weight and bias of the product whose output channels are the activation's."""
    value = _before_attention(activation) or activation
    bias: ir.Value | None = None
    while (node := value.producer()) is not None:
        if value is not activation and (len(value.uses()) > 1 or value.is_graph_output()):
            return None
        if node.op_type in ("MatMul", "Gemm"):
            return _product_constants(node, bias)
        below: ir.Value | None = None
        if node.op_type in _HOMOGENEOUS:
            below = node.inputs[0]
        elif node.op_type == "Add" and bias is None:
            below, bias = _added(node)
        if below is None:
            return None
        value = below
    return None


def _product_constants(node: ir.Node, added: ir.Value | None) -> tuple[tuple[str, int], ...] | None:
    """The weight, with the axis of its output channels, and the biases of a product."""
    weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    found = _foldable([weight, added, bias])
    if found is None or len(_shape(weight)) != 2 or (bias is not None and len(_shape(bias)) != 1):
        return None
    transposed = "transB" in node.attributes and node.attributes["transB"].as_int() == 1
    return ((found[0][0], 0 if transposed else 1), *found[1:])


def _shape(value: ir.Value | None) -> tuple[int, ...]:
    """The shape of a constant, () for anything else."""
    array = constant_of(value)
    return () if array is None else array.shape


def _added(node: ir.Node) -> tuple[ir.Value | None, ir.Value | None]:
    """(the activation, the constant vector) of an Add; (None, None) for one that is something else."""
    for value, bias in (node.inputs, node.inputs[::-1]):
        if bias is not None and len(_shape(bias)) == 1:
            return value, bias
    return None, None


def _before_attention(activation: ir.Value) -> ir.Value | None:
    """The values that attention averages to make the activation: averaging over positions keeps a channel's factor."""
    from deploykit.graph.attention import attention_sites, merged_heads, split_heads

    maker = activation.producer()
    graph = None if maker is None or maker.op_type != "Reshape" else activation.graph
    if graph is None:
        return None
    for site in attention_sites(graph):
        if merged_heads(site.product) is activation and (heads := split_heads(site.value)) is not None:
            return heads.source
    return None


def _foldable(constants: Sequence[ir.Value | None]) -> tuple[tuple[str, int], ...] | None:
    """The constants as (name, axis 0), absent ones left out; None when one is no initializer or is read elsewhere."""
    found = []
    for value in constants:
        if value is None:
            continue
        if value.const_value is None or value.is_graph_input() or len(value.uses()) != 1:
            return None
        found.append((str(value.name), 0))
    return tuple(found)


def _scale_constant(value: ir.Value, factors: np.ndarray, axis: int) -> None:
    """Multiply an initializer along an axis."""
    import onnx_ir as ir

    array = constant_of(value)
    assert array is not None
    shape = [1] * array.ndim
    shape[axis] = -1
    value.const_value = ir.tensor((array * factors.reshape(shape)).astype(np.float32), name=value.name)


def _through_mul(graph: ir.Graph, value: ir.Value, site: Site, factors: np.ndarray) -> Site:
    import onnx_ir as ir

    name = str(value.name)
    inverse = add_constant(graph, f"{name}_factors", (1 / factors).astype(np.float32))
    node = ir.node("Mul", [value, inverse], name=f"{name}_smooth")
    out = node.outputs[0]
    out.name, out.shape, out.dtype = f"{name}_smoothed", value.shape, value.dtype
    readers = {product.output for product in site.products}
    uses = [use for use in value.uses() if use.node.outputs[0].name in readers]
    maker = value.producer()
    if maker is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(maker, node)
    for use in uses:
        use.node.replace_input_with(use.idx, out)
    return Site(str(out.name), tuple(replace(product, activation=str(out.name)) for product in site.products))


def values_of(model: ir.Model) -> dict[str, ir.Value]:
    """Every value of the graph by its name."""
    graph = model.graph
    values = {str(value.name): value for value in (*graph.inputs, *graph.initializers.values())}
    return values | {str(value.name): value for node in graph for value in node.outputs}
