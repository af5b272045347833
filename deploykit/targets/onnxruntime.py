"""The build side of ONNX Runtime on the CPU: attention fused into MultiHeadAttention, saved as plain ONNX.

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

from deploykit.errors import RecipeError
from deploykit.runtime.manifest import Card
from deploykit.targets import Compiled

if TYPE_CHECKING:
    import onnx_ir as ir

PRECISIONS = ("fp32", "fp16")

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
_PRODUCTS = _INT8_PRODUCTS | {"Conv", "FusedConv", "FusedMatMul", "Gemm", "MatMul"}
_PRECISION_NAMES = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_LEVELS = {"all": "ENABLE_ALL", "extended": "ENABLE_EXTENDED", "basic": "ENABLE_BASIC", "off": "DISABLE_ALL"}


@dataclass(frozen=True)
class Options:
    """``fuse_attention`` replaces written-out attention by MultiHeadAttention, an operator of ONNX Runtime's own."""

    fuse_attention: bool = True


def compile(model: Path, card: Card, precision: str, options: Options, out: Path) -> Compiled:
    """Write ``out/model.onnx`` with the attention fused; an empty path when that changes nothing in an fp32 model.

    Raises `RecipeError` for a precision that the CPU provider does not run.
    """
    import onnx
    import onnx_ir as ir

    from deploykit.graph.export import save
    from deploykit.graph.multi_head import fuse_multi_head_attention

    if precision not in PRECISIONS:
        raise RecipeError(
            f"onnxruntime's CPU provider does not run '{precision}'",
            hint=f"this target has {' and '.join(PRECISIONS)}; for bf16 on CPUs use the target openvino",
        )
    graph_model = ir.from_proto(onnx.load(model))
    fused = fuse_multi_head_attention(graph_model) if options.fuse_attention else 0
    settings = {"config": dict(_SLOW_FUSION)}
    notes = ("weights are stored in fp16 and cast to fp32 when the model is loaded; it computes in fp32",)
    if precision != "fp16" and not fused:
        return Compiled(path="", settings=settings)
    save(ir.to_proto(graph_model), out / "model.onnx")
    return Compiled(path="model.onnx", settings=settings, notes=notes if precision == "fp16" else ())


def audit(artifact: Path, card: Card, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Count what ONNX Runtime runs after its own optimisation: operations x precision, and the fused attentions."""
    import onnxruntime

    graph, provider = _optimised(artifact, settings)
    operations = _operations(graph)
    fused = sum(node.op_type in _FUSED_ATTENTION for node in graph)
    facts: dict[str, Any] = {
        "engine": f"onnxruntime {onnxruntime.__version__}",
        "device": provider,
        "asked": "fp16" if _stores_fp16(artifact) else "fp32",
        "operations": operations,
        "attention": {"found": fused + _unfused(graph), "fused": fused},
        "casts_folded": not any(node.op_type == "Cast" and _reads_weight(node) for node in graph),
    }
    return facts | {"sentence": _sentence(facts)}


def _sentence(facts: Mapping[str, Any]) -> str:
    products = {op: kinds for op, kinds in facts["operations"].items() if op in _PRODUCTS}
    counted = ", ".join(f"{n} {op} in {kind}" for op, kinds in products.items() for kind, n in kinds.items())
    parts = [f"{facts['engine']} on {facts['device']} runs {counted or 'no matrix product'}"]
    if facts["attention"]["found"]:
        parts.append("{fused} of {found} attentions are fused".format(**facts["attention"]))
    if facts["asked"] == "fp16":
        parts.append(f"weights stored in fp16 are cast {'once, at load' if facts['casts_folded'] else 'at every call'}")
    return "; ".join(parts) + "."


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
        kind = "int64" if node.op_type in ("Shape", "Size") else next(iter(known), "unknown")
        for value in node.outputs:
            kinds.setdefault(value.name, kind)
        precision = "int8" if node.op_type in _INT8_PRODUCTS else _PRECISION_NAMES.get(kind, kind)
        counts[node.op_type][precision] += 1
    return {op: dict(sorted(of_op.items())) for op, of_op in sorted(counts.items())}


def _unfused(graph: ir.Graph) -> int:
    """Softmaxes whose weights go straight into a matrix product: attention that stayed written out."""
    return sum(
        node.op_type == "Softmax" and any(use.node.op_type in _PRODUCTS for use in node.outputs[0].uses())
        for node in graph
    )


def _reads_weight(node: ir.Node) -> bool:
    return node.inputs[0] is not None and node.inputs[0].const_value is not None


def _stores_fp16(artifact: Path) -> bool:
    import onnx

    model = onnx.load(artifact, load_external_data=False)
    return any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)
