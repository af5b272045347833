"""The build side of ONNX Runtime on the CPU: attention fused into MultiHeadAttention, saved as plain ONNX.

Quantized graphs come as standard ONNX too (QuantizeLinear and DequantizeLinear around products, or the dynamic chain):
the session fuses them into its int8 kernels when it is loaded, and the audit counts where it did.

The artefact is never one that ONNX Runtime optimised and saved itself: such a file may hold operators laid out for the
CPU that wrote it. The session's own fusions run when it is loaded, except `_SLOW_FUSION`.
"""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.audit import PRODUCTS, describe, products
from deploykit.errors import RecipeError
from deploykit.runtime.manifest import Card
from deploykit.targets import Compiled

if TYPE_CHECKING:
    import onnx_ir as ir

PRECISIONS = ("fp32", "fp16", "int8", "int8-dynamic")

# Measured on x86 with MiniLM: SkipLayerNormalization on the CPU takes longer than the Add and the LayerNormalization
# that it replaces; without it a whole call is 8 % faster at every size tried.
_SLOW_FUSION = {"optimization.disable_specified_optimizers": "SkipLayerNormFusion"}
_FUSED_ATTENTION = frozenset({"MultiHeadAttention", "Attention", "QAttention"})
_INT8_PRODUCTS = frozenset(
    {
        "ConvInteger",
        "DynamicQuantizeMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "QAttention",
        "QGemm",
        "QLinearConv",
        "QLinearMatMul",
    }
)
# What may stand between a softmax and the product that reads it in a quantized graph.
_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
# MatMulNBits rounds its activations to int8 at this level, and at every other one computes in fp32.
_INT8_ACCURACY = 4
_OUTPUT_KINDS = {"Shape": "int64", "Size": "int64", "DynamicQuantizeLinear": "uint8"}
_PRECISION_NAMES = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_LEVELS = {"all": "ENABLE_ALL", "extended": "ENABLE_EXTENDED", "basic": "ENABLE_BASIC", "off": "DISABLE_ALL"}
_FP16_NOTE = "weights are stored in fp16 and cast to fp32 when the model is loaded; it computes in fp32"
#: The key in an artefact's metadata under which `compile` leaves what was asked for.
_ASKED = "deploykit.precision"


@dataclass(frozen=True)
class Options:
    """``fuse_attention`` replaces written-out attention by MultiHeadAttention, an operator of ONNX Runtime's own."""

    fuse_attention: bool = True


def compile(model: Path, card: Card, precision: str, options: Options, out: Path) -> Compiled:
    """Write ``out/model.onnx`` with the attention fused; an empty path when that changes nothing in an fp32 model.

    An attention whose products were quantized stays as it is: the operator takes fp32. Raises `RecipeError` for a
    precision that the CPU provider does not run.
    """
    import onnx
    import onnx_ir as ir

    from deploykit.graph.export import save
    from deploykit.graph.multi_head import fuse_multi_head_attention
    from deploykit.quantize.fuse import fuse_bias

    if precision not in PRECISIONS:
        raise RecipeError(
            f"onnxruntime's CPU provider does not run '{precision}'",
            hint="this target has fp32 and fp16, int8 and int8-dynamic; for bf16 on CPUs use the target openvino",
        )
    graph_model = ir.from_proto(onnx.load(model))
    fused = fuse_multi_head_attention(graph_model) if options.fuse_attention else 0
    if precision == "int8":  # behind the attention, which takes the biases of its projections
        fuse_bias(graph_model)
    settings = {"config": dict(_SLOW_FUSION)}
    if precision == "fp32" and not fused:
        return Compiled(path="", settings=settings)
    proto = ir.to_proto(graph_model)
    proto.metadata_props.add(key=_ASKED, value=precision)
    save(proto, out / "model.onnx")
    return Compiled(path="model.onnx", settings=settings, notes=(_FP16_NOTE,) if precision == "fp16" else ())


def audit(artifact: Path, card: Card, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Count what ONNX Runtime runs after its own optimisation: operations x precision, and the fused attentions.

    A product with DequantizeLinear nodes in front of it that were not fused into it computes in fp32, and counts as
    that; one that became MatMulNBits counts as the precision that its kernel rounds activations to.
    """
    import onnxruntime

    graph, provider = _optimised(artifact, settings)
    operations = _operations(graph)
    counts = products({"operations": operations})
    fused = sum(node.op_type in _FUSED_ATTENTION for node in graph)
    asked, stored = _asked_and_stored(artifact)
    facts: dict[str, Any] = {
        "engine": f"onnxruntime {onnxruntime.__version__}",
        "device": provider,
        "asked": asked,
        "stored": stored,
        "effective": max(sorted(counts), key=counts.__getitem__, default="fp32"),
        "operations": operations,
        "products": counts,
        "attention": {"found": fused + _unfused(graph), "fused": fused},
        "casts_folded": not any(node.op_type == "Cast" and _reads_weight(node) for node in graph),
    }
    return facts | {"sentence": describe(facts)}


def _optimised(artifact: Path, settings: Mapping[str, Any]) -> tuple[ir.Graph, str]:
    """The graph that a session with these settings runs, and its provider."""
    import onnx_ir as ir
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    level = _LEVELS[str(settings.get("graph_optimization", "all"))]
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{level}")
    for key, value in settings.get("config", {}).items():
        options.add_session_config_entry(key, str(value))
    with tempfile.TemporaryDirectory() as folder:
        # Weights go beside the graph, so that models beyond protobuf's 2 GB can be looked at; they are not read.
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
        session = onnxruntime.InferenceSession(artifact, options, providers=["CPUExecutionProvider"])
        return ir.load(Path(folder) / "optimised.onnx").graph, session.get_providers()[0]


def _operations(graph: ir.Graph) -> dict[str, dict[str, int]]:
    """{operator: {precision: how many}}: the type of the first output, or where the file gives none, of an input."""
    kinds: dict[str | None, str] = {}
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for node in graph:
        values = [value for value in (*node.outputs, *node.inputs) if value is not None]
        kinds |= {value.name: value.dtype.name.lower() for value in values if value.dtype is not None}
        known = [kinds[value.name] for value in values if value.name in kinds]
        kind = _output_kind(node) or next(iter(known), "unknown")
        for value in node.outputs:
            kinds.setdefault(value.name, kind)
        precision = "int8" if _computes_int8(node) else _PRECISION_NAMES.get(kind, kind)
        counts[node.op_type][precision] += 1
    return {op: dict(sorted(of_op.items())) for op, of_op in sorted(counts.items())}


def _output_kind(node: ir.Node) -> str:
    """The type of the output where the operator alone decides it; empty for all others."""
    import onnx_ir as ir

    if node.op_type == "Cast":
        return str(ir.DataType(node.attributes["to"].as_int()).name).lower()
    return _OUTPUT_KINDS.get(node.op_type, "")


def _computes_int8(node: ir.Node) -> bool:
    if node.op_type == "MatMulNBits":
        level = node.attributes.get("accuracy_level")
        return level is not None and level.as_int() == _INT8_ACCURACY
    return node.op_type in _INT8_PRODUCTS


def _unfused(graph: ir.Graph) -> int:
    """Softmaxes whose weights go into a matrix product: attention that stayed written out."""
    return sum(
        node.op_type in ("Softmax", "QLinearSoftmax") and any(_feeds_product(value) for value in node.outputs)
        for node in graph
    )


def _feeds_product(value: ir.Value) -> bool:
    readers = [use.node for use in value.uses()]
    return any(
        reader.op_type in PRODUCTS or (reader.op_type in _QUANTIZERS and _feeds_product(reader.outputs[0]))
        for reader in readers
    )


def _reads_weight(node: ir.Node) -> bool:
    return node.inputs[0] is not None and node.inputs[0].const_value is not None


def _asked_and_stored(artifact: Path) -> tuple[str, str]:
    """The precision asked for, and the narrowest type of a weight in the file.

    What `compile` noted, or where it did not (the portable model, an older bundle) what the file itself shows.
    """
    import onnx

    model = onnx.load(artifact, load_external_data=False)
    kinds = onnx.TensorProto
    types = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) > 1}
    operators = {node.op_type for node in model.graph.node}
    stored = "int8" if types & {kinds.INT8, kinds.UINT8} else "fp16" if kinds.FLOAT16 in types else "fp32"
    shown = "int8-dynamic" if operators & {"DynamicQuantizeLinear", "MatMulNBits"} else stored
    return next((entry.value for entry in model.metadata_props if entry.key == _ASKED), shown), stored
