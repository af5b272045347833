"""The build side of ONNX Runtime on NVIDIA GPUs: attention fused, fp16 as arithmetic, no int8.

A target of its own beside ``onnxruntime``, and no option of it: a bundle may hold both, they take fp16 in other forms
(the GPU computes in it, the CPU only stores it), and a device needs other things for each. The CUDA provider has no
int8 kernels for what the precisions write: it would dequantize first, and take longer than in fp16.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.audit import describe
from deploykit.errors import RecipeError
from deploykit.runtime.engines import Engine, EngineOptions, open_engine
from deploykit.runtime.engines.onnxruntime_cuda import LOWEST
from deploykit.runtime.manifest import Card
from deploykit.targets import Compiled
from deploykit.targets._tensorrt import Checker, products_by_precision

PRECISIONS = ("fp32", "fp16")
# CUDA 13, which current packages are built with, compiles for no older one.
_COMPUTE_CAPABILITY = "7.5"
#: The key in an artefact's metadata under which `compile` leaves what was asked for; the portable model has none.
_ASKED = "deploykit.precision"


@dataclass(frozen=True)
class Options:
    """``fuse_attention`` replaces written-out attention by MultiHeadAttention, an operator of ONNX Runtime's own."""

    fuse_attention: bool = True


def compile(model: Path, card: Card, precision: str, options: Options, out: Path) -> Compiled:
    """Write ``out/model.onnx`` with the attention fused; an empty path when that changes nothing in an fp32 model.

    Raises `RecipeError` for a precision that the CUDA provider does not run, and for an fp16 model none of whose
    products is computed in fp16.
    """
    import onnx
    import onnx_ir as ir

    from deploykit.graph.export import save
    from deploykit.graph.multi_head import fuse_multi_head_attention

    if precision not in PRECISIONS:
        raise RecipeError(
            f"onnxruntime's CUDA provider does not run '{precision}'",
            hint="this target has fp32 and fp16; for int8 and fp8 on NVIDIA GPUs use the target tensorrt",
        )
    proto = onnx.load(model)
    if precision == "fp16" and not products_by_precision(proto).get("fp16"):
        raise RecipeError(
            f"'{model.name}' is to run in fp16, and no product of it is computed so",
            hint="compile what the precision fp16 lowered for this target",
        )
    graph_model = ir.from_proto(proto)
    fused = fuse_multi_head_attention(graph_model) if options.fuse_attention else 0
    requires = {"compute_capability": _COMPUTE_CAPABILITY, "packages": {"onnxruntime-gpu": f">={LOWEST}"}}
    if precision == "fp32" and not fused:
        return Compiled(path="", requires=requires)
    lowered = ir.to_proto(graph_model)
    lowered.metadata_props.add(key=_ASKED, value=precision)
    save(lowered, out / "model.onnx")
    return Compiled(path="model.onnx", requires=requires)


def audit(artifact: Path, card: Card, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Products and attentions by the precision that the graph computes them in; the CUDA provider has no other.

    That they run on the GPU is checked whenever the variant is opened there (`deploykit.runtime.engines`).
    """
    import onnx

    proto = onnx.load(artifact)
    counts = products_by_precision(proto)
    fused = sum(node.op_type == "MultiHeadAttention" for node in proto.graph.node)
    effective = max(counts, key=lambda kind: counts[kind], default="fp32")
    facts: dict[str, Any] = {
        "engine": "onnxruntime, CUDA provider",
        "asked": next((entry.value for entry in proto.metadata_props if entry.key == _ASKED), "fp32"),
        "effective": effective,
        "products": counts,
        "attention": {"found": fused + _softmaxes(proto), "fused": fused},
    }
    return facts | {"sentence": describe(facts)}


def _softmaxes(proto: Any) -> int:
    """Attention that stayed written out: softmaxes that a matrix product reads."""
    outputs = {node.output[0] for node in proto.graph.node if node.op_type == "Softmax"}
    return sum(node.op_type == "MatMul" and node.input[0] in outputs for node in proto.graph.node)


def check_engine(artifact: Path, card: Card, settings: Mapping[str, Any]) -> Engine:
    """What computes the same numbers on a CPU: fp32 as it is, fp16 with every result rounded to fp16."""
    import onnx

    from deploykit.graph.half import rounded

    proto = onnx.load(artifact)
    if not products_by_precision(proto).get("fp16"):
        return open_engine("onnxruntime", artifact, card, {}, EngineOptions())
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "rounded.onnx"
    onnx.save(rounded(proto), path)
    return Checker(open_engine("onnxruntime", path, card, {}, EngineOptions()), folder)
