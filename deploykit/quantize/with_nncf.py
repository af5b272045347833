"""Static int8 for OpenVINO on the CPU, chosen by NNCF (https://github.com/openvinotoolkit/nncf).

OpenVINO's kernels take forms that ONNX Runtime is slow at (signed activations, attention scores of two int8
operands), and NNCF knows which of them a graph can have. It leaves a Q/DQ ONNX here: as accurate as what it makes of
OpenVINO's own form, and exactly as fast.

Two settings differ from NNCF's defaults, because rare tokens and very short texts have activations unlike those of the
usual text; a sentence encoder's empty text stood at a cosine of 0.97 with the defaults, and at 0.99 with these:

- a range holds everything that was seen, not the mean of what each input holds;
- SmoothQuant (Xiao et al. 2022, https://arxiv.org/abs/2211.10438) migrates with the exponent 0.8 instead of 0.95.

Of a graph without attention, what follows the last product (pooling, normalisation) stays float as it does with one: it
saves no time, and OpenVINO 2026.4 answers with zeros for all rows of a batch but the first where the sum of a pooling
reads 8 bits. Where OpenVINO cannot load what was
quantized (it moves scales of channels through a Reshape that splits them), the products before that place stay float.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from deploykit.errors import ExportError, MissingError, RecipeError
from deploykit.precisions import Feeds, Task
from deploykit.runtime.engines.openvino import without_telemetry
from deploykit.runtime.install import pip_install

if TYPE_CHECKING:
    import onnx

    from deploykit.quantize.products import Product

#: SmoothQuant's migration strength. MiniLM's mean cosine to fp32 is 0.992 at 0.5, 0.9976 at 0.7, 0.9979 at 0.8 and
#: 0.9975 at 0.95, where short texts lose most.
ALPHA = 0.8

# Operators that hand on elements as they are: 8-bit values stay 8-bit values on the way through.
_MOVES = frozenset({"Flatten", "Identity", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


_PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})

# How often more products are left float for OpenVINO's sake.
_TRIES = 6

# NNCF's scale for a range of nothing is fp32's epsilon.
_NO_RANGE = 1.2e-7


class Wanted(Protocol):
    """What is read of the precision's options: kinds of products that stay in float, whether to smooth, and for which
    CPU: "any" keeps weights to 7 bits, with which no x86 kernel saturates.
    """

    @property
    def keep(self) -> tuple[str, ...]: ...

    @property
    def smooth(self) -> bool: ...

    @property
    def cpu(self) -> str: ...


@dataclass(frozen=True)
class _Way:
    """How NNCF is called."""

    transformer: bool
    smooth: bool
    seven_bits: bool


def quantize(task: Task, options: Wanted, out: Path) -> dict[str, Any]:
    """Write ``out/model.onnx``, the task's model with Q/DQ; returns what was quantized, what stayed float, and how.

    Whether the graph is treated as a transformer is read off the graph. Raises `RecipeError` without calibration
    inputs, or where nothing is left to quantize, `UnknownNameError` for a kind that does not exist, `MissingError`
    without NNCF, `ExportError` when NNCF fails or quantizes nothing, `CheckError` for activations that are not finite.
    """
    import onnx
    import onnx_ir as ir

    from deploykit.graph.attention import attention_sites
    from deploykit.graph.export import save
    from deploykit.quantize import products as finding
    from deploykit.quantize.observe import observe
    from deploykit.quantize.static import check_calibration

    inputs = check_calibration(task.calibration)
    proto = onnx.load(task.model)
    _name_nodes(proto)
    graph_model = ir.from_proto(proto)
    products = finding.find(graph_model)
    attentions = len(attention_sites(graph_model.graph))
    kept = [*_kept(products, options.keep), *([] if attentions else _behind_products(proto))]
    way = _Way(attentions > 0, options.smooth, options.cpu == "any")
    with _quiet_nncf():
        quantized, told = _loadable(proto, task.calibration, way, kept, products)
    if _without_range(quantized):
        # Where it found nothing finite NNCF goes on with the smallest scale there is: say which activation that was.
        observe(proto, {product.activation: product.input_axis for product in products}, task.calibration)
    counts = _counts(quantized, products)
    if not counts["quantized"]:
        raise ExportError("NNCF quantized none of the model's products", hint="choose int8-dynamic, bf16 or fp32")
    save(quantized, out / "model.onnx")
    return {
        "method": f"NNCF {_version()}, mixed preset" + (f", SmoothQuant {ALPHA}" if options.smooth else ""),
        "weight_bits": 7 if way.seven_bits else 8,
        "transformer": attentions > 0,
        "calibration_inputs": inputs,
        **counts,
        "notes": [f"fp32, because OpenVINO cannot load the model with it in int8: {kind}" for kind in sorted(told)],
    }


def _kept(products: Sequence[Product], keep: tuple[str, ...]) -> list[str]:
    """Names of the nodes that stay float. `RecipeError` where none is left to quantize."""
    from deploykit.quantize import products as finding

    if not any(product.is_weighted for product in products):
        raise RecipeError(
            "the model has no product that can be quantized",
            hint="int8 is for MatMul, Gemm and Conv with constant fp32 weights: choose fp32 or bf16",
        )
    kinds = finding.select(keep, [product.kind for product in products])
    if all(product.kind in kinds or product.kind == finding.CONTEXT for product in products):
        raise RecipeError("keep leaves no product to quantize", hint="keep fewer kinds, or choose fp32 or bf16")
    return [product.node for product in products if product.kind in kinds]


def _behind_products(proto: onnx.ModelProto) -> list[str]:
    """Names of the nodes that no product reads from, however far behind."""
    read = set[str]()
    behind = []
    for node in reversed(proto.graph.node):  # sorted, so that what reads an output comes first
        if node.op_type in _PRODUCTS or not read.isdisjoint(node.output):
            read.update(node.input)
        else:
            behind.append(node.name)
    return behind


def _name_nodes(proto: onnx.ModelProto) -> None:
    """NNCF tells nodes by name; what `products.find` calls a nameless one is the name of its output."""
    for node in proto.graph.node:
        node.name = node.name or node.output[0]


def _loadable(
    proto: onnx.ModelProto,
    batches: Sequence[Feeds],
    way: _Way,
    kept: list[str],
    products: Sequence[Product],
) -> tuple[onnx.ModelProto, set[str]]:
    """The quantized model, and the kinds of products that are float in it because OpenVINO would not load it."""
    told = set[str]()
    for _ in range(_TRIES):
        quantized = _run(proto, batches, way, kept)
        before = _products_before(proto, _stumbled_over(quantized))
        kinds = {product.kind for product in products if product.node in before}
        more = [product.node for product in products if product.kind in kinds and product.node not in kept]
        if not more:
            break
        kept, told = [*kept, *more], told | kinds
    return quantized, told


def _stumbled_over(quantized: onnx.ModelProto) -> set[str]:
    """The words of OpenVINO's complaint, names of nodes among them; none where it loads the model."""
    import openvino

    core = openvino.Core()
    try:
        core.compile_model(core.read_model(quantized.SerializeToString()), "CPU")
    except RuntimeError as error:
        return set(re.findall(r"[^\s\[\](),']+", str(error)))
    return set()


def _products_before(proto: onnx.ModelProto, names: set[str]) -> set[str]:
    """The nearest products that the nodes of these names read from."""
    made = {name: node for node in proto.graph.node for name in node.output}
    found, seen = set[str](), set[str]()
    ahead = [node for node in proto.graph.node if node.name in names]
    while ahead:
        node = ahead.pop()
        seen.add(node.name)
        if node.op_type in _PRODUCTS:
            found.add(node.name)
            continue
        sources = (made[name] for name in node.input if name in made)
        ahead += [source for source in sources if source.name not in seen]
    return found


def _run(proto: onnx.ModelProto, batches: Sequence[Feeds], way: _Way, kept: list[str]) -> onnx.ModelProto:
    import nncf
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        AdvancedSmoothQuantParameters,
        OverflowFix,
    )
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    advanced = AdvancedQuantizationParameters(
        activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
        overflow_fix=OverflowFix.ENABLE if way.seven_bits else OverflowFix.FIRST_LAYER,
        smooth_quant_alphas=AdvancedSmoothQuantParameters(matmul=ALPHA if way.smooth else -1),
    )
    taken = {value.name for value in proto.graph.input}
    feeds = [{name: array for name, array in batch.items() if name in taken} for batch in batches]
    try:
        return nncf.quantize(
            proto,
            nncf.Dataset(feeds),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(feeds),
            model_type=nncf.ModelType.TRANSFORMER if way.transformer else None,
            ignored_scope=nncf.IgnoredScope(names=kept) if kept else None,
            advanced_parameters=advanced,
        )
    except Exception as error:
        raise ExportError(
            f"NNCF cannot quantize the model: {type(error).__name__}: {_last_line(error)}",
            hint="name what it stumbles over in keep, or choose int8-dynamic, bf16 or fp32",
        ) from error


def _without_range(quantized: onnx.ModelProto) -> bool:
    """Is there a scale of activations so small, or so far from a number, that no range can have been seen?"""
    import numpy as np
    from onnx import numpy_helper

    names = {node.input[1] for node in quantized.graph.node if node.op_type == "QuantizeLinear"}
    scales = [numpy_helper.to_array(t) for t in quantized.graph.initializer if t.name in names]
    return any(bool((~(np.abs(scale) > _NO_RANGE)).any()) for scale in scales)


@contextlib.contextmanager
def _quiet_nncf() -> Iterator[None]:
    """NNCF imported without its telemetry, and run without progress bars and log lines."""
    without_telemetry()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            import nncf  # noqa: F401  its log handler holds on to the stdout that it finds when it is imported
        except ImportError as error:
            raise MissingError(
                f"int8 for openvino is made by NNCF, which is not installed ({error})",
                hint=pip_install("int8"),
            ) from error
        logger = logging.getLogger("nncf")
        level = logger.level
        logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logger.setLevel(level)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


def _version() -> str:
    from importlib.metadata import version

    return version("nncf")


def _counts(quantized: onnx.ModelProto, products: Sequence[Product]) -> dict[str, Any]:
    """How many products of each kind read two dequantized operands, and the kinds in which some do not."""
    made = {name: node for node in quantized.graph.node for name in node.output}
    nodes = {node.name: node for node in quantized.graph.node}
    int8: Counter[str] = Counter()
    kept: set[str] = set()
    for product in products:
        if all(_dequantized(name, made) for name in nodes[product.node].input[:2]):
            int8[product.kind] += 1
        else:
            kept.add(product.kind)
    return {"quantized": dict(int8), "kept_fp32": sorted(kept)}


def _dequantized(name: str, made: Mapping[str, onnx.NodeProto]) -> bool:
    """Is the value made by a DequantizeLinear, moves of elements passed over?"""
    node = made.get(name)
    while node is not None and node.op_type in _MOVES:
        node = made.get(node.input[0])
    return node is not None and node.op_type == "DequantizeLinear"
