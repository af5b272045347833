"""Static quantization from end to end: observe, smooth, choose scales, round, correct biases, insert Q/DQ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from deploykit.errors import RecipeError
from deploykit.graph.edit import add_constant
from deploykit.precisions import Feeds, Task
from deploykit.quantize import products as finding
from deploykit.quantize import smooth
from deploykit.quantize.observe import Observed, observe
from deploykit.quantize.products import Product, as_matrix, constant_of
from deploykit.quantize.qdq import Range, Scheme, Stored, insert, quantize_array, range_of
from deploykit.quantize.rounding import compensate, round_weight, search_range
from deploykit.quantize.smooth import Migration, Site, values_of

if TYPE_CHECKING:
    import onnx_ir as ir

#: Fewer inputs than this do not show what an activation holds.
FEWEST = 8


@dataclass(frozen=True)
class Method:
    """How scales are chosen.

    ``smooth``: "folded" migrates outliers where it costs no operation, "mul" also where it costs one, "off" nowhere.
    ``clip`` searches the range of an activation that changes its products least, else takes the largest values seen.
    ``rounding``: "nearest", or "gptq", where later weights make up for the rounding of earlier ones. ``correct_bias``
    takes the mean of the error out of the bias. ``embeddings`` stores tables in int8 too (`embeddings.store`).
    """

    smooth: Literal["folded", "mul", "off"] = "mul"
    clip: bool = True
    rounding: Literal["nearest", "gptq"] = "nearest"
    correct_bias: bool = True
    embeddings: bool = False


@dataclass(frozen=True)
class Quantized:
    """What was decided, before any Q/DQ is put in: everything that `deploykit.quantize.qdq.insert` takes, and facts."""

    products: tuple[Product, ...]
    ranges: Mapping[str, Range]
    weights: Mapping[str, Stored]
    scheme: Scheme
    migrations: tuple[Migration, ...]


def quantize(task: Task, scheme: Scheme, method: Method, out: Path) -> dict[str, Any]:
    """Write ``out/model.onnx``, the task's model with Q/DQ, and return what was done.

    ``scheme.keep`` may hold glob patterns. Raises `RecipeError` where there is too little to calibrate on or nothing to
    quantize, `UnknownNameError` for a kind that does not exist, `CheckError` for activations that are not finite.
    """
    import onnx
    import onnx_ir as ir
    import onnx_ir.passes.common as passes

    from deploykit.graph.export import save
    from deploykit.graph.half import typed
    from deploykit.quantize import embeddings

    check_calibration(task.calibration)
    model = typed(onnx.load(task.model))  # a Q/DQ pair takes its type from the value, which a graph need not state
    decided = decide(model, scheme, method, task.calibration)
    insert(model, decided.products, decided.ranges, decided.weights, decided.scheme)
    tables = embeddings.store(model) if method.embeddings else []
    passes.RemoveUnusedNodesPass()(model)
    save(ir.to_proto(model), out / "model.onnx")
    return facts_of(decided, task.calibration) | {"embeddings": tables}


def check_calibration(batches: Sequence[Feeds]) -> int:
    """How many inputs the batches hold; `RecipeError` where they are too few to calibrate on."""
    count = sum(len(next(iter(batch.values()))) for batch in batches)
    if not count:
        raise RecipeError(
            "quantizing needs inputs to calibrate on, and there are none",
            hint="give calibration = a file of real inputs; 100 to 500 are enough",
        )
    if count < FEWEST:
        raise RecipeError(
            f"{count} calibration inputs do not show what the activations hold",
            hint=f"give {FEWEST} at the very least; 100 to 500 real inputs are enough",
        )
    return count


def chosen(model: ir.Model, scheme: Scheme) -> tuple[list[Product], Scheme]:
    """The graph's products, and the scheme with its patterns replaced by kinds. Raises where nothing is left."""
    products = finding.find(model)
    candidates = [product for product in products if product.is_weighted or scheme.attention]
    if not candidates:
        raise RecipeError(
            "the model has no product that can be quantized",
            hint="quantizing is for MatMul, Gemm and Conv with constant fp32 weights: choose fp32 or fp16",
        )
    kept = finding.select(scheme.keep, [product.kind for product in products])
    scheme = replace(scheme, keep=tuple(sorted(kept)))
    if not any(scheme.takes(product) for product in products):
        raise RecipeError("keep leaves no product to quantize", hint="keep fewer kinds, or choose fp32 or fp16")
    return products, scheme


def decide(model: ir.Model, scheme: Scheme, method: Method, batches: Sequence[Feeds]) -> Quantized:
    """Choose everything, and carry out in ``model`` what is plain fp32 arithmetic: migrations and corrected biases."""
    import onnx_ir as ir

    if method.rounding == "gptq" and scheme.activation == "float8e4m3fn":
        raise RecipeError(
            "gptq rounds to whole numbers, and float8 is not made of them", hint='set rounding = "nearest"'
        )
    products, scheme = chosen(model, scheme)
    taken = [product for product in products if scheme.takes(product)]
    own_constants(model, taken)
    wanted: dict[str, int | None] = {product.activation: product.input_axis for product in taken}
    wanted |= {product.other: None for product in taken if product.other is not None}
    seen = observe(ir.to_proto(model), wanted, batches)
    ranges: dict[str, Range] = {}
    weights: dict[str, Stored] = {}
    migrations: list[Migration] = []
    final: list[Product] = []
    # Every migration comes first: one that is folded changes the weights of the layer before.
    migrated = [
        _migrate(model, site, seen[site.activation], scheme, method, migrations) for site in smooth.sites(taken)
    ]
    for site, statistics in migrated:
        ranges[site.activation] = _range(values_of(model), site, statistics, scheme, method)
        for product in site.products:
            _weigh(model, product, statistics, ranges[site.activation], weights, scheme, method)
        final += site.products
    for product in taken:
        if not product.is_weighted:
            for name in (product.activation, str(product.other)):
                at = seen[name]
                ranges.setdefault(name, range_of(float(at.low.min()), float(at.high.max()), scheme))
            final.append(product)
    return Quantized(tuple(final), ranges, weights, scheme, tuple(migrations))


def own_constants(model: ir.Model, products: Sequence[Product]) -> None:
    """Make initializers of the products' weights and biases that are Constant nodes or transposes of constants."""
    import onnx_ir as ir

    values = values_of(model)
    for name in dict.fromkeys(name for product in products for name in (product.weight, product.bias) if name):
        value = values[name]
        node = value.producer()
        array = constant_of(value)
        if node is None or array is None:
            continue
        stored = add_constant(model.graph, f"{name}_constant", np.ascontiguousarray(array))
        ir.convenience.replace_all_uses_with(value, stored)
        model.graph.remove(node, safe=True)
        model.graph.initializers.pop(str(stored.name))
        stored.name = name
        model.graph.register_initializer(stored)


def facts_of(decided: Quantized, batches: Sequence[Feeds]) -> dict[str, Any]:
    """What was quantized and kept, by kind, for the audit trail."""
    quantized = Counter(product.kind for product in decided.products)
    return {
        "activation": decided.scheme.activation,
        "weight_bits": 7 if decided.scheme.reduce_range else 8,
        "calibration_inputs": check_calibration(batches),
        "quantized": dict(quantized),
        "kept_fp32": list(decided.scheme.keep),
        "smoothed": [
            {"value": m.activation, "way": m.way, "alpha": m.alpha, "error_before": m.before, "error_after": m.after}
            for m in decided.migrations
        ],
    }


def _migrate(
    model: ir.Model, site: Site, seen: Observed, scheme: Scheme, method: Method, done: list[Migration]
) -> tuple[Site, Observed]:
    if method.smooth == "off":
        return site, seen
    found = smooth.search(model, site, seen, scheme, allow_mul=method.smooth == "mul")
    if found is None:
        return site, seen
    done.append(found)
    return smooth.apply(model, site, found), smooth.scaled(seen, found.factors)


def _range(values: Mapping[str, ir.Value], site: Site, seen: Observed, scheme: Scheme, method: Method) -> Range:
    low, high = float(seen.low.min()), float(seen.high.max())
    if not method.clip:
        return range_of(low, high, scheme)
    weight = None if any(product.op == "Conv" for product in site.products) else smooth.stacked(values, site)
    return search_range(seen.rows, low, high, weight, scheme).range


def _weigh(
    model: ir.Model,
    product: Product,
    seen: Observed,
    at: Range,
    weights: dict[str, Stored],
    scheme: Scheme,
    method: Method,
) -> None:
    """Quantize the weight of one product, unless another product shares it, and correct the product's bias."""
    values = values_of(model)
    name = str(product.weight)
    array = constant_of(values[name])
    assert array is not None
    linear = product.op != "Conv"
    rows = quantize_array(seen.rows, at, scheme) if linear else seen.rows
    if name not in weights:
        moments = np.square(rows, dtype=np.float64).mean(0) if linear else None
        weights[name] = round_weight(product, array, moments, scheme)
        if linear and method.rounding == "gptq":
            weights[name] = compensate(product, array, weights[name], rows, scheme)
    if method.correct_bias and product.bias is not None:
        stored = weights[name]
        axis_shape = [1] * array.ndim
        axis_shape[product.axis] = -1
        given_back = stored.values.astype(np.float32) * stored.scale.reshape(axis_shape)
        _correct_bias(model, product, _mean_error(product, array, given_back, seen, rows))


def _mean_error(
    product: Product, array: np.ndarray, given_back: np.ndarray, seen: Observed, rows: np.ndarray
) -> np.ndarray:
    """The mean of (exact - quantized) by output channel, float32 [out]."""
    exact, rounded = as_matrix(product, array), as_matrix(product, given_back)
    if product.op != "Conv":
        return np.asarray(seen.rows.mean(0) @ exact.T - rows.mean(0) @ rounded.T)
    # What a kernel sums over at one position is [in / groups, …]; the borders' padding is left out of account.
    off = (exact - rounded).reshape(product.shape[0], product.shape[1], -1).sum(2)
    groups = len(seen.mean) // product.shape[1]
    means = np.repeat(seen.mean.reshape(groups, -1), product.shape[0] // groups, axis=0)
    return np.asarray((off * means).sum(1), np.float32)


def _correct_bias(model: ir.Model, product: Product, error: np.ndarray) -> None:
    """Add the mean error to the bias of this product alone."""
    values = values_of(model)
    bias = constant_of(values[str(product.bias)])
    assert bias is not None
    corrected = add_constant(model.graph, f"{product.output}_bias", (bias + error).astype(np.float32))
    node = values[product.output].producer()
    assert node is not None
    reader = node if len(node.inputs) > 2 else next(iter(values[product.output].uses())).node
    for i, value in enumerate(reader.inputs):
        if value is not None and value.name == product.bias:
            reader.replace_input_with(i, corrected)
