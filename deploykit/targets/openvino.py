"""The build side of OpenVINO on the CPU: ONNX to ``.xml`` and ``.bin``, and the precision stated in its settings.

OpenVINO's CPU plugin fuses attention by itself, into one JIT-compiled subgraph, when it finds it as
`deploykit.graph.rewrite.clean` leaves it; its ScaledDotProductAttention node is only kept for generative models with
a state. The precision is never left to OpenVINO: on machines with AMX it would run fp32 models in bf16.

An int8 model is one whose graph quantizes (Q/DQ in ONNX, FakeQuantize in OpenVINO's own form); the hint then says what
everything else runs in. That is fp32 unless asked otherwise: products in int8 leave little for bf16 to win, and fused
attention with int8 scores under the bf16 hint was seen to be wrong at a single length on a CPU with AMX (cosine 0.82
at 32 tokens, 0.998 at all others), never under the f32 hint.
"""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deploykit.audit import describe
from deploykit.errors import ExportError, RecipeError
from deploykit.runtime.engines.openvino import without_telemetry
from deploykit.runtime.manifest import Card
from deploykit.targets import Compiled

if TYPE_CHECKING:
    import openvino

PRECISIONS = ("fp32", "bf16", "fp16", "int8")

# What the engine is asked to compute in; int8 is in the graph, and the hint is for the rest of it.
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f32"}
_NOTES = {
    "bf16": "matrix products run in bf16, normalisation and residual sums in fp32",
    "fp16": "weights are stored in fp16; it computes in fp32, which is faster on CPUs without fp16 arithmetic",
}
_BF16_RESIDUAL_NOTE = "matrix products and residual sums run in bf16, pooling and what follows it in fp32"
REQUIRES = {"bf16": {"architecture": ["x86_64"], "cpu_features": ["amx_bf16|avx512_bf16"]}}
_PRODUCTS = frozenset({"FullyConnected", "MatMul", "Convolution"})
# What may stand between a softmax and the product with the values: the NaN guard, casts, Q/DQ.
_BETWEEN = frozenset({"Select", "Convert", "FakeQuantize"})
# What OpenVINO calls an element type, in this project's words.
_PRECISION_NAMES = {"f32": "fp32", "f16": "fp16", "i8": "int8", "I8": "int8", "u8": "uint8", "U8": "uint8"}
_PLUMBING = frozenset({"Input", "Output", "Reshape"})


@dataclass(frozen=True)
class Options:
    """``bf16_residual`` keeps the residual stream of what runs in bf16 in bf16 as well (`deploykit.graph.tail`).

    Without it OpenVINO adds and normalises in fp32: slower, and a little closer to torch. ``int8_remainder`` is what an
    int8 variant runs in where it is not quantized.
    """

    bf16_residual: bool = True
    int8_remainder: Literal["fp32", "bf16"] = "fp32"


def compile(model: Path, card: Card, precision: str, options: Options, out: Path) -> Compiled:
    """Write ``out/model.xml`` and ``out/model.bin``; weights keep the type that they have in ``model``.

    ``model`` is an ``.onnx``, or an ``.xml`` with its ``.bin`` beside it. Runs on any machine: what the device must
    have is stated in ``requires``. Raises `RecipeError` for an unknown precision and for an int8 model in which nothing
    is quantized, and `ExportError` when OpenVINO cannot convert the graph.
    """
    if precision not in PRECISIONS:
        raise RecipeError(f"openvino has no precision '{precision}' here", hint=f"it has {', '.join(PRECISIONS)}")
    without_telemetry()
    import openvino

    computed = options.int8_remainder if precision == "int8" else precision
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        rewritten = computed == "bf16" and options.bf16_residual and _end_tail(model, Path(scratch) / "model.onnx")
        try:
            converted = openvino.Core().read_model(Path(scratch) / "model.onnx" if rewritten else model)
        except RuntimeError as error:
            raise ExportError(
                f"OpenVINO cannot convert the model: {_last_line(error)}",
                hint="the message names the operator: leave the target openvino out, or export at another opset",
            ) from error
        if precision == "int8" and not _quantizes(converted):
            raise RecipeError(
                f"'{model.name}' is to run in int8, and nothing in it is quantized",
                hint="compile what the precision int8 lowered, not the fp32 model",
            )
        openvino.save_model(converted, out / "model.xml", compress_to_fp16=False)
    return Compiled(
        path="model.xml",
        settings={"INFERENCE_PRECISION_HINT": _HINTS[computed]},
        requires=REQUIRES.get(computed, {}),
        notes=_notes(precision, computed, rewritten),
    )


def _notes(precision: str, computed: str, rewritten: bool) -> tuple[str, ...]:
    if precision == "int8":
        return (f"quantized products run in int8, everything else in {computed}",)
    if rewritten:
        return (_BF16_RESIDUAL_NOTE,)
    return (_NOTES[precision],) if precision in _NOTES else ()


def _end_tail(model: Path, path: Path) -> bool:
    """Write the model with its fp32 tail ended to ``path``; False, and nothing written, where there is none to end.

    An ``.xml`` is taken as it is.
    """
    if model.suffix != ".onnx":
        return False
    import onnx
    import onnx_ir as ir

    from deploykit.graph.export import save
    from deploykit.graph.tail import end_tail

    graph_model = ir.from_proto(onnx.load(model))
    if not end_tail(graph_model):
        return False
    save(ir.to_proto(graph_model), path)
    return True


def audit(artifact: Path, card: Card, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Compile the artefact and count what runs: operations x precision, and the attentions that became one kernel.

    ``products`` are the matrix products and convolutions by the precision of their operands, those inside a fused
    attention left out; ``operations`` tells uint8 activations from int8 ones, and has the fused attentions as Subgraph.
    """
    without_telemetry()
    import openvino

    core = openvino.Core()
    model = core.read_model(artifact)
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", **settings})
    nodes = _executed(compiled.get_runtime_model())
    softmaxes = _attention_softmaxes(model)
    products = _products(nodes)
    effective = _name(compiled.get_property("INFERENCE_PRECISION_HINT").to_string())
    facts: dict[str, Any] = {
        "engine": f"openvino {openvino.get_version().split('-')[0]}",
        "device": ",".join(compiled.get_property("EXECUTION_DEVICES")),
        "asked": _name(str(settings.get("INFERENCE_PRECISION_HINT", "f32"))),
        "effective": "int8" if products.get("int8") else effective,
        "operations": _operations(nodes),
        "products": products,
        "attention": {"found": len(softmaxes), "fused": _fused(nodes, softmaxes)},
    }
    if _quantizes(model):
        facts |= {"asked": "int8", "remainder": effective}
    elif facts["asked"] == "fp32" and _stores_fp16(model):
        facts |= {"asked": "fp16", "stored": "fp16"}
    return facts | {"sentence": describe(facts)}


def _quantizes(model: openvino.Model) -> bool:
    return any(node.get_type_name() == "FakeQuantize" for node in model.get_ops())


def _stores_fp16(model: openvino.Model) -> bool:
    constants = (node for node in model.get_ops() if node.get_type_name() == "Constant")
    return any(node.get_element_type().get_type_name() == "f16" for node in constants)


@dataclass(frozen=True)
class _Node:
    """What the plugin reports of one node: its kind, the precision it computes in, the layers that went into it."""

    kind: str
    precision: str
    layers: frozenset[str]


def _executed(runtime_model: openvino.Model) -> list[_Node]:
    """The nodes of a compiled model that run at every call: those that only prepare weights run once."""
    constant: set[str] = set()
    nodes = []
    for node in runtime_model.get_ordered_ops():
        info = node.get_rt_info()
        kind = info["layerType"].astype(str)
        parents = [parent.get_node().get_friendly_name() for parent in node.input_values()]
        if kind == "Const" or (parents and constant.issuperset(parents)):
            constant.add(node.get_friendly_name())
            continue
        layers = info["originalLayersNames"].astype(str) if "originalLayersNames" in info else ""
        nodes.append(_Node(kind, info["runtimePrecision"].astype(str), frozenset(filter(None, layers.split(",")))))
    return nodes


def _operations(nodes: list[_Node]) -> dict[str, dict[str, int]]:
    """{kind of node: {precision: how many}}, without what only carries data."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for node in nodes:
        if node.kind not in _PLUMBING:
            counts[node.kind][_name(node.precision)] += 1
    return {kind: dict(sorted(counts[kind].items())) for kind in sorted(counts)}


def _products(nodes: list[_Node]) -> dict[str, int]:
    """{precision: how many}; a product of 8-bit operands is int8 whether they have a sign or not."""
    counts = Counter(_name(node.precision) for node in nodes if node.kind in _PRODUCTS)
    counts["int8"] += counts.pop("uint8", 0)
    return {precision: count for precision, count in sorted(counts.items()) if count}


def _name(precision: str) -> str:
    return _PRECISION_NAMES.get(precision, precision)


def _attention_softmaxes(model: openvino.Model) -> set[str]:
    """Names of the softmaxes, or attention operators, whose result is multiplied with values."""
    found = set()
    for node in model.get_ops():
        kind = node.get_type_name()
        if kind == "ScaledDotProductAttention" or (kind == "Softmax" and _feeds_product(node)):
            found.add(node.get_friendly_name())
    return found


def _feeds_product(node: openvino.Node) -> bool:
    readers = [reader.get_node() for reader in node.output(0).get_target_inputs()]
    if any(reader.get_type_name() == "MatMul" for reader in readers):
        return True
    return any(
        _feeds_product(reader) for reader in readers if reader.get_type_name() in _BETWEEN or _dequantizes(reader)
    )


def _dequantizes(node: openvino.Node) -> bool:
    """The arithmetic of a DequantizeLinear: a zero point is subtracted, and a scale multiplied."""
    if node.get_type_name() not in ("Subtract", "Multiply"):
        return False
    operand = node.input_value(1).get_node()
    while operand.get_type_name() in ("Convert", "Reshape", "Unsqueeze"):
        operand = operand.input_value(0).get_node()
    return bool(operand.get_type_name() == "Constant")


def _fused(nodes: list[_Node], softmaxes: set[str]) -> int:
    """How many of these softmaxes went into a larger kernel instead of standing as one of their own."""
    return len({name for node in nodes if node.kind != "Softmax" for name in node.layers & softmaxes})


def _last_line(error: RuntimeError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
