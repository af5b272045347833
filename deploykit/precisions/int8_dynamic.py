"""int8-dynamic: int8 weights, and activations quantized while the model runs. It needs no calibration data.

Weights are stored in int8, symmetric, with one scale per output channel. In front of each product the range of the
whole activation is looked up and it is rounded to uint8 (DynamicQuantizeLinear, MatMulInteger: standard ONNX, which
ONNX Runtime fuses into single kernels). Convolutions stay fp32: its dynamic convolution is several times slower.

One range for the whole activation means that an input's vector changes with what else is in its batch (MiniLM: cosine
0.992 between batches of 1 and of 32, where fp32 is as far away). Products named in ``Options.blockwise`` do without:
their activations are rounded block by block in every row (MatMulNBits, an operator of ONNX Runtime's own). On MiniLM
that leaves a seventh of the drift and runs at 1.5 times the speed of fp32 instead of 2.7 times; for the second
feed-forward products alone, somewhat over half of the drift at 2.3 times.

Kernels of x86 CPUs without VNNI add two products of 8 bits in 16 and saturate; weights of 7 bits never do.
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from deploykit.errors import RecipeError, UnknownNameError, nearest
from deploykit.graph.prove import Tolerance
from deploykit.precisions import EXACT_INT8, Task, adds_int8_exactly, refuse_quantized

if TYPE_CHECKING:
    import onnx_ir as ir

    from deploykit.quantize.products import Product

# MiniLM's worst of 36 shapes of random tokens stands at 0.970 with 7 bits; kernels that are wrong were seen at 0.82.
TOLERANCE = Tolerance(cosine=0.9, relative_error=0.5)
FORMS: dict[str, str] = {}
CALIBRATED = False
BATCH_DEPENDENT = True

_DOMAIN = "com.microsoft"
_BLOCK = 128
# The first version with 8-bit kernels of MatMulNBits on both x86 (from 1.22 on) and ARM.
_BLOCKWISE_PACKAGES = {"onnxruntime": ">=1.23"}
_INT8_COMPUTE = 4
_SCALED_BIAS = "its bias is multiplied by a beta other than 1"
_BATCH_NOTE = (
    "a vector changes with the other inputs of its batch, by about as much as int8 costs: activations are rounded "
    "with one range for the whole batch"
)


@dataclass(frozen=True)
class Options:
    """``keep`` names products that stay fp32, and ``blockwise`` those whose activations get a range of their own for
    every row and block of 128: by kind (the role in a repeated block), by the node's name, or as a glob of either.

    ``cpu``: vnni uses all 8 bits of a weight and requires a CPU that adds them exactly; any uses 7; auto decides by
    the machine that builds. ``embeddings`` stores embedding tables in int8 too, one scale per row.
    """

    keep: tuple[str, ...] = ()
    blockwise: tuple[str, ...] = ()
    cpu: Literal["auto", "vnni", "any"] = "auto"
    embeddings: bool = True


@dataclass
class _Done:
    """What was changed, by the name of the node or the table; ``kept`` with the reason."""

    dynamic: list[str] = field(default_factory=list)
    blockwise: list[str] = field(default_factory=list)
    embeddings: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)


def resolve(options: Options) -> Options:
    """``auto`` becomes ``vnni`` where this machine adds products of 8 bits exactly, else ``any``."""
    if options.cpu != "auto":
        return options
    return replace(options, cpu="vnni" if adds_int8_exactly() else "any")


def lower(task: Task, options: Options, out: Path) -> dict[str, Any]:
    """Write ``out/model.onnx``; returns what was quantized, what was kept and why, and what a device must have.

    Raises `RecipeError` when there is no product to quantize, and `UnknownNameError` when an option names none.
    """
    import onnx
    import onnx_ir as ir

    from deploykit.graph.export import save
    from deploykit.graph.rewrite import tidy
    from deploykit.quantize import embeddings
    from deploykit.quantize.products import find

    options = resolve(options)
    proto = onnx.load(task.model)
    refuse_quantized(proto, "int8-dynamic")
    model = ir.from_proto(proto)
    weighted = [product for product in find(model) if product.is_weighted]
    products = [product for product in weighted if product.op != "Conv"]
    if not products:
        raise _nothing(len(weighted))
    done = _Done(kept={p.node: "a convolution, which is slower in dynamic int8" for p in weighted if p.op == "Conv"})
    _quantize(model, products, options, done)
    if not done.dynamic and not done.blockwise:
        raise RecipeError("int8-dynamic was told to keep every product fp32", hint="name fewer kinds in keep")
    if options.embeddings:
        done.embeddings += embeddings.store(model)
    if done.blockwise:
        model.opset_imports[_DOMAIN] = 1
    tidy(model)
    save(ir.to_proto(model), out / "model.onnx")
    changed = {*done.dynamic, *done.blockwise}
    kinds = Counter(product.kind for product in products if product.node in changed)
    return _facts(task.model, out / "model.onnx", options, done) | {"kinds": dict(kinds)}


def _nothing(convolutions: int) -> RecipeError:
    if convolutions:
        return RecipeError(
            f"int8-dynamic has nothing to quantize: the model has {convolutions} convolutions and no matrix product "
            "with a weight, and convolutions are slower in dynamic int8 than in fp32",
            hint="ask for int8, which quantizes convolutions with ranges from calibration data",
        )
    return RecipeError("int8-dynamic has nothing to quantize: no matrix product has a weight", hint="ask for fp32")


def _facts(before: Path, after: Path, options: Options, done: _Done) -> dict[str, Any]:
    requires: dict[str, Any] = {}
    if options.cpu == "vnni" and done.dynamic:
        requires["cpu_features"] = [EXACT_INT8]
    if done.blockwise:
        requires["packages"] = dict(_BLOCKWISE_PACKAGES)
    notes = [_BATCH_NOTE] if done.dynamic else []
    convolutions = sum(reason.startswith("a convolution") for reason in done.kept.values())
    if convolutions:
        notes.append(f"{convolutions} convolutions stay fp32: they are slower in dynamic int8")
    return {
        "cpu": options.cpu,
        "weight_bits": 8 if options.cpu == "vnni" else 7,
        "quantized": len(done.dynamic) + len(done.blockwise),
        "blockwise": done.blockwise,
        "embeddings": done.embeddings,
        "kept_fp32": done.kept,
        "bytes_before": _bytes(before),
        "bytes_after": _bytes(after),
        "requires": requires,
        "notes": notes,
    }


def _bytes(model: Path) -> int:
    """The model's size with its external weights."""
    data = model.with_name(model.name + ".data")
    return model.stat().st_size + (data.stat().st_size if data.exists() else 0)


def named(patterns: Iterable[str], products: Sequence[Product], option: str) -> set[str]:
    """The nodes that the patterns name, by kind or node name, exactly or as a glob.

    `UnknownNameError` for a pattern that names none.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        exact = {p.node for p in products if pattern in (p.kind, p.node)}
        found = exact or {p.node for p in products if any(fnmatch.fnmatchcase(n, pattern) for n in (p.kind, p.node))}
        if not found:
            known = sorted({p.kind for p in products})
            raise UnknownNameError(
                f"{option} names '{pattern}', and no product has that kind or node name", hint=nearest(pattern, known)
            )
        chosen |= found
    return chosen


def _quantize(model: ir.Model, products: Sequence[Product], options: Options, done: _Done) -> None:
    """Quantize the products in place; an activation is quantized once for all products that read it."""
    from deploykit.quantize.products import constant_of

    keep = named(options.keep, products, "keep")
    blockwise = named(options.blockwise, products, "blockwise")
    limit = 127 if options.cpu == "vnni" else 63
    nodes = {str(node.outputs[0].name): node for node in model.graph}
    activations: dict[str, tuple[ir.Value, ir.Value, ir.Value]] = {}
    for product in products:
        node = nodes[product.output]
        weight = constant_of(node.inputs[1])
        assert weight is not None
        scaled = _scaled(node, weight)
        reason = "named in keep" if product.node in keep else "" if scaled is not None else _SCALED_BIAS
        if scaled is None or reason:
            done.kept[product.node] = reason
        elif not np.isfinite(scaled).all():
            done.kept[product.node] = "its weight holds infinity or NaN"
        elif product.node in blockwise:
            _to_blocks(model.graph, node, product, scaled)
            done.blockwise.append(product.node)
        else:
            _to_integers(model.graph, node, product, scaled, limit, activations)
            done.dynamic.append(product.node)


def _scaled(node: ir.Node, weight: np.ndarray) -> np.ndarray | None:
    """The weight as [in, out] with a Gemm's alpha in it; None for a Gemm that scales its bias."""
    if node.op_type == "MatMul":
        return weight
    alpha, beta, transposed = (_attribute(node, name, default) for name, default in _GEMM)
    if len(node.inputs) > 2 and node.inputs[2] is not None and beta != 1:
        return None
    return (weight.T if transposed else weight) * np.float32(alpha)


_GEMM = (("alpha", 1.0), ("beta", 1.0), ("transB", 0.0))


def _attribute(node: ir.Node, name: str, default: float) -> float:
    return float(node.attributes[name].value) if name in node.attributes else default


def _to_integers(
    graph: ir.Graph,
    node: ir.Node,
    product: Product,
    weight: np.ndarray,
    limit: int,
    activations: dict[str, tuple[ir.Value, ir.Value, ir.Value]],
) -> None:
    """DynamicQuantizeLinear → MatMulInteger → Cast → Mul by both scales: the chain that ONNX Runtime fuses."""
    import onnx_ir as ir

    from deploykit.graph.edit import add_constant, insert

    activation = node.inputs[0]
    assert activation is not None
    if product.activation not in activations:
        dynamic = ir.node("DynamicQuantizeLinear", [activation], num_outputs=3)
        graph.insert_before(node, dynamic)
        stored, scale, zero = dynamic.outputs
        activations[product.activation] = (stored, scale, zero)
    stored, scale, zero = activations[product.activation]
    top = np.abs(weight).max(axis=0)
    steps = np.where(top > 0, top / limit, 1.0).astype(np.float32)
    integers = np.clip(np.rint(weight / steps), -limit, limit).astype(np.int8)
    values = add_constant(graph, f"{product.weight}_int8", integers)
    weight_scale = add_constant(graph, f"{product.weight}_scale", steps)
    accumulated = insert(graph, node, "MatMulInteger", [stored, values, zero])
    as_float = insert(graph, node, "Cast", [accumulated], to=int(ir.DataType.FLOAT))
    both = insert(graph, node, "Mul", [scale, weight_scale])
    _finish(graph, node, insert(graph, node, "Mul", [as_float, both]))


def _to_blocks(graph: ir.Graph, node: ir.Node, product: Product, weight: np.ndarray) -> None:
    """MatMulNBits with weights of 8 bits around 128, one scale per output and block of inputs, computing in int8."""
    from deploykit.graph.edit import add_constant, insert

    inputs, outputs = weight.shape
    blocks = -(-inputs // _BLOCK)
    padded = np.zeros((outputs, blocks * _BLOCK), np.float32)
    padded[:, :inputs] = weight.T
    padded = padded.reshape(outputs, blocks, _BLOCK)
    top = np.abs(padded).max(axis=-1)
    steps = np.where(top > 0, top / 127, 1.0).astype(np.float32)
    integers = (np.clip(np.rint(padded / steps[..., None]), -127, 127) + 128).astype(np.uint8)
    values = add_constant(graph, f"{product.weight}_blocks", integers)
    scales = add_constant(graph, f"{product.weight}_block_scales", steps)
    shape = {"K": inputs, "N": outputs, "bits": 8, "block_size": _BLOCK, "accuracy_level": _INT8_COMPUTE}
    _finish(graph, node, insert(graph, node, "MatMulNBits", [node.inputs[0], values, scales], domain=_DOMAIN, **shape))


def _finish(graph: ir.Graph, node: ir.Node, result: ir.Value) -> None:
    """Add a Gemm's bias, and take the old product's place."""
    from deploykit.graph.edit import insert, replace

    if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
        result = insert(graph, node, "Add", [result, node.inputs[2]])
    replace(graph, node, result)
