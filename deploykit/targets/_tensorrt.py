"""What both TensorRT targets share: the strongly typed ONNX checked, the recipe written, engines built ahead of time.

Precision comes from the graph alone: the precisions write fp16 arithmetic and Q/DQ, and `deploykit.quantize.lint`
holds it against the parser's rules before the parser sees it. What the bundle carries is that ONNX and a build recipe
(`deploykit.runtime.tensorrt`); the engine is built on the device and cached there.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.audit import describe
from deploykit.errors import BundleError, ExportError, RecipeError
from deploykit.runtime.engines import Engine, EngineOptions, Feeds
from deploykit.runtime.manifest import Card, TensorSpec
from deploykit.runtime.tensorrt.build import build, dumps
from deploykit.runtime.tensorrt.flavour import Flavour
from deploykit.runtime.tensorrt.recipe import Bounds, Recipe
from deploykit.targets import Compiled

if TYPE_CHECKING:
    import onnx

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")

#: The smallest compute capability that each precision runs on. TensorRT for RTX refuses fp32 products below 8.0.
COMPUTE_CAPABILITY = {"fp32": "7.5", "fp16": "7.5", "bf16": "8.0", "int8": "8.0", "fp8": "8.9"}
_QUANTIZED = ("int8", "fp8")
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# What may stand between a DequantizeLinear and the product that reads it.
_PASSING = frozenset({"Cast", "Identity", "Reshape", "Transpose"})


@dataclass(frozen=True)
class Options:
    """What the engine is built for, and how.

    ``batch`` is the smallest, usual and largest batch. ``lengths`` are the upper ends of buckets of the first other
    dynamic axis (tokens, samples): one optimization profile each; without any, one profile spans all that was proven.
    ``sizes`` gives the smallest, usual and largest size of any other axis by name, or bounds one that has none.
    ``workspace_mib`` bounds scratch memory; ``optimization_level`` is 0 (quick) to 5 (thorough); None leaves either to
    TensorRT. ``sm`` are compute capabilities ("8.9") to build engines for now, which tensorrt-rtx does without a GPU.
    """

    batch: tuple[int, ...] = (1, 8, 32)
    lengths: tuple[int, ...] = ()
    sizes: Mapping[str, tuple[int, ...]] | None = None
    workspace_mib: int | None = None
    optimization_level: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    sm: tuple[str, ...] = ()


def compile(
    flavour: Flavour, model: Path, card: Card, precision: str, options: Options, out: Path, lowest: str
) -> Compiled:
    """Check the graph, write the recipe into the settings, and build an engine for each ``sm``.

    ``out`` then holds ``model.onnx`` and, beside it, ``model.sm89.engine`` with its metadata ``model.sm89.json``. An
    fp32 model for which nothing is built is the portable one: the path is empty. ``lowest`` is the oldest version of
    the package that builds it. Raises `RecipeError` for options that make no sense, `CheckError` for a graph that
    TensorRT does not take, `ExportError` with its own lines where it fails all the same.
    """
    import onnx

    if precision not in PRECISIONS:
        raise RecipeError(f"{flavour.name} has no precision '{precision}'", hint=f"it has {', '.join(PRECISIONS)}")
    needed = _needed(flavour, precision)
    _check_sm(options.sm, precision, needed)
    _check_levels(options)
    proto = onnx.load(model)
    if precision in _QUANTIZED:
        _check_quantized(proto, model, precision)
    recipe = Recipe(
        precision=precision,
        compute_capability=needed,
        profiles=tuple(profiles(card.inputs, card.limits.axes, options)),
        workspace_mib=options.workspace_mib,
        optimization_level=options.optimization_level,
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
    )
    path = ""
    if precision != "fp32" or options.sm:
        path = "model.onnx"
        _copy(model, out / path)
    return Compiled(
        path=path,
        settings=recipe.settings,
        requires={"compute_capability": needed, "packages": {flavour.package: f">={lowest}"}},
        notes=(_build_ahead(flavour, out / path, recipe, options.sm) if options.sm else _on_device(recipe),),
    )


def profiles(
    inputs: Sequence[TensorSpec], proven: Mapping[str, tuple[int, int]], options: Options
) -> list[dict[str, Bounds]]:
    """One optimization profile for each bucket of lengths; none for a model whose shapes are fixed.

    ``proven`` are the (smallest, largest) sizes of the dynamic axes. Raises `RecipeError` for an axis without bounds.
    """
    names = list(dict.fromkeys(axis for spec in inputs for axis in spec.shape if isinstance(axis, str)))
    if not names:
        return []
    given = {"batch": options.batch, **(options.sizes or {})}
    for name in given:
        if name not in (*names, "batch"):
            raise RecipeError(f"sizes names the axis '{name}'", hint=f"the model's dynamic axes are {', '.join(names)}")
    axes = {name: _triple(name, given.get(name), proven.get(name)) for name in names}
    if axes.get("batch", (1,))[0] > 1:
        least, *others = axes["batch"]
        raise RecipeError(
            f"the smallest batch is {least}, and one input alone could not be encoded",
            hint=f"begin with 1: batch = {[1, *others]}",
        )
    length = next((name for name in names if name != "batch"), None)
    if not options.lengths:
        return [_profile(inputs, axes)]
    if length is None:
        raise RecipeError("lengths are given, and only the batch of this model varies", hint="leave lengths out")
    return [_profile(inputs, {**axes, length: bucket}) for bucket in _buckets(length, axes[length], options.lengths)]


def _triple(name: str, given: Sequence[int] | None, proven: tuple[int, int] | None) -> tuple[int, int, int]:
    """The smallest, usual and largest size of an axis; a usual size that nobody gave is a quarter of the largest."""
    if given is not None:
        if len(given) != 3 or not 0 < given[0] <= given[1] <= given[2]:
            raise RecipeError(f"'{name}' is {list(given)}", hint="give the smallest, the usual and the largest size")
        return given[0], given[1], given[2]
    if proven is None:
        raise RecipeError(
            f"the dynamic axis '{name}' has no bounds", hint=f"add sizes = {{ {name} = [smallest, usual, largest] }}"
        )
    low, high = proven
    return low, max(low, high // 4), high


def _buckets(name: str, whole: tuple[int, int, int], ends: Sequence[int]) -> list[tuple[int, int, int]]:
    low, _, high = whole
    if list(ends) != sorted(set(ends)) or not low <= ends[0] or ends[-1] > high:
        raise RecipeError(
            f"lengths are {list(ends)}, and '{name}' was proven from {low} to {high}",
            hint="give rising ends of buckets inside those bounds",
        )
    starts = [low, *(end + 1 for end in ends[:-1])]
    return [(start, (start + end) // 2, end) for start, end in zip(starts, ends, strict=True)]


def _profile(inputs: Sequence[TensorSpec], axes: Mapping[str, tuple[int, int, int]]) -> dict[str, Bounds]:
    def shape(spec: TensorSpec, which: int) -> tuple[int, ...]:
        return tuple(axes[axis][which] if isinstance(axis, str) else axis for axis in spec.shape)

    dynamic = [spec for spec in inputs if any(isinstance(axis, str) for axis in spec.shape)]
    return {spec.name: Bounds(shape(spec, 0), shape(spec, 1), shape(spec, 2)) for spec in dynamic}


def _check_sm(asked: Sequence[str], precision: str, needed: str) -> None:
    for sm in asked:
        if not re.fullmatch(r"\d+\.\d", sm):
            raise RecipeError(f"sm is '{sm}'", hint='write a compute capability with its dot: "8.9"')
        if _numbers(sm) < _numbers(needed):
            raise RecipeError(
                f"{precision} needs compute capability {needed}, and sm asks for {sm}",
                hint=f"leave {sm} out, or leave {precision} out",
            )


def _check_levels(options: Options) -> None:
    if options.optimization_level is not None and not 0 <= options.optimization_level <= 5:
        raise RecipeError(f"optimization_level is {options.optimization_level}", hint="give 0 to 5")
    if options.workspace_mib is not None and options.workspace_mib < 1:
        raise RecipeError(f"workspace_mib is {options.workspace_mib}", hint="it is in MiB: give 1 or more")


def _needed(flavour: Flavour, precision: str) -> str:
    return "8.0" if flavour.ahead and precision == "fp32" else COMPUTE_CAPABILITY[precision]


def _numbers(sm: str) -> tuple[int, ...]:
    return tuple(int(part) for part in sm.split("."))


def _check_quantized(proto: onnx.ModelProto, model: Path, precision: str) -> None:
    from deploykit.quantize import lint

    if not products_by_precision(proto).get(precision):
        raise RecipeError(
            f"'{model.name}' is to run in {precision}, and no product of it is quantized so",
            hint=f"compile what the precision {precision} lowered, not the fp32 model",
        )
    lint.enforce(proto)


def _copy(model: Path, path: Path) -> None:
    shutil.copyfile(model, path)
    weights = model.with_name(model.name + ".data")
    if weights.exists():
        shutil.copyfile(weights, path.with_name(weights.name))


def _build_ahead(flavour: Flavour, model: Path, recipe: Recipe, asked: Sequence[str]) -> str:
    """Build and write one engine for each compute capability; returns the sentence that says so."""
    if not flavour.ahead:
        raise RecipeError(
            f"{flavour.name} builds only for the GPU that is here, and sm asks for {', '.join(asked)}",
            hint="leave sm out (the engine is built on the device), or take the target tensorrt-rtx",
        )
    import onnx

    trt, products = flavour.load(), products_by_precision(onnx.load(model))
    said = []
    for sm in dict.fromkeys(asked):
        try:
            made = build(trt, flavour.name, model, recipe, sm)
        except BundleError as error:
            raise ExportError(error.message, hint=error.hint) from error
        stem = f"{model.stem}.sm{sm.replace('.', '')}"
        model.with_name(f"{stem}.engine").write_bytes(made.engine)
        model.with_name(f"{stem}.json").write_text(dumps({**made.metadata, "products": products}), encoding="utf-8")
        said.append(f"{sm} ({len(made.engine) / 2**20:.1f} MiB in {made.seconds:.1f} s)")
    maker = f"{flavour.name} {trt.__version__}"
    built = f"engines were built ahead of time, by {maker}, for compute capability {', '.join(said)}"
    return f"{built}; they go beside the bundle"


def _on_device(recipe: Recipe) -> str:
    return (
        f"no engine was built here: the device builds it when the variant is first loaded, from the {recipe.precision} "
        "ONNX and the recipe"
    )


def products_by_precision(proto: onnx.ModelProto) -> dict[str, int]:
    """{precision: how many matrix products and convolutions} of a strongly typed graph.

    A product is int8 or fp8 when both its operands come from a DequantizeLinear of that type; else it runs in the type
    of its operands.
    """
    import onnx_ir as ir

    from deploykit.graph.half import typed

    graph = typed(proto).graph
    counts = Counter(_precision_of(node) for node in graph if node.op_type in _PRODUCTS)
    names = {ir.DataType.FLOAT.name: "fp32", ir.DataType.FLOAT16.name: "fp16", ir.DataType.BFLOAT16.name: "bf16"}
    return {names.get(kind, kind): count for kind, count in sorted(counts.items())}


def _precision_of(node: Any) -> str:
    quantized = {_quantized_type(value) for value in node.inputs[:2]}
    if len(quantized) == 1 and (kind := quantized.pop()):
        return kind
    dtype = next((value.dtype for value in (*node.outputs, *node.inputs) if value is not None and value.dtype), None)
    return "unknown" if dtype is None else str(dtype.name)


def _quantized_type(value: Any) -> str:
    """``int8`` or ``fp8`` where the value is what a DequantizeLinear of that type gave, else empty."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in _PASSING:
        node = node.inputs[0].producer()
    if node is None or node.op_type != "DequantizeLinear":
        return ""
    dtype = node.inputs[0].dtype
    return {"INT8": "int8", "FLOAT8E4M3FN": "fp8"}.get("" if dtype is None else dtype.name, "")


def audit(flavour: Flavour, artifact: Path, card: Card, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Products by precision and the Q/DQ nodes, from the strongly typed ONNX, which fixes what TensorRT computes in.

    ``attention`` is not counted: which attentions become one kernel is decided when the engine is built. Of engines
    that were built ahead of time it gives what their metadata say of the layers; TensorRT's inspector needs a GPU and
    is asked there (`deploykit.runtime.tensorrt.layers`).
    """
    import onnx

    proto = onnx.load(artifact)
    recipe = Recipe.read(settings)
    operators = Counter(node.op_type for node in proto.graph.node)
    counts = products_by_precision(proto)
    built = sorted(artifact.parent.glob(f"{artifact.stem}.sm*.engine"))
    facts: dict[str, Any] = {
        "engine": f"{flavour.name} {flavour.version()}".strip(),
        "asked": recipe.precision,
        "effective": recipe.precision if counts.get(recipe.precision) else max(counts, key=lambda k: counts[k]),
        "products": counts,
        "quantize": operators["QuantizeLinear"],
        "dequantize": operators["DequantizeLinear"],
        "from": "the strongly typed ONNX",
        "engines": {path.name: _told(path.with_suffix(".json")) for path in built},
    }
    return facts | {"sentence": describe(facts)}


def _told(metadata: Path) -> dict[str, Any]:
    found = json.loads(metadata.read_text(encoding="utf-8"))
    return {key: found[key] for key in ("version", "compute_capability", "bytes", "layers", "layers_by_type")}


def check_engine(artifact: Path, card: Card, settings: Mapping[str, Any]) -> Engine:
    """What computes the same numbers on a CPU: every 16-bit result rounded, Q/DQ carried out as written, nothing fused.

    The caller owns the engine.
    """
    import onnx

    from deploykit.graph.half import rounded
    from deploykit.graph.ranges import threads
    from deploykit.runtime.engines import open_engine

    precision = Recipe.read(settings).precision
    if precision == "fp32":
        return open_engine("onnxruntime", artifact, card, {}, EngineOptions(threads=threads()))
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "rounded.onnx"
    onnx.save(rounded(onnx.load(artifact)), path)
    # Optimised, onnxruntime does not run float8 Q/DQ, and fuses int8 Q/DQ into kernels that TensorRT has not.
    level = {"graph_optimization": "off"} if precision in _QUANTIZED else {}
    return Checker(open_engine("onnxruntime", path, card, level, EngineOptions(threads=threads())), folder)


class Checker:
    """An engine with the file that it reads, which goes when it is closed."""

    def __init__(self, engine: Engine, folder: tempfile.TemporaryDirectory[str]) -> None:
        self._engine, self._folder = engine, folder
        self.effective = engine.effective

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """See `deploykit.runtime.engines.Engine`."""
        return self._engine.run(feeds)

    def run_many(self, batches: Iterable[Feeds]) -> list[dict[str, np.ndarray]]:
        """See `deploykit.runtime.engines.Engine`."""
        return self._engine.run_many(batches)

    def close(self) -> None:
        """See `deploykit.runtime.engines.Engine`."""
        self._engine.close()
        self._folder.cleanup()
