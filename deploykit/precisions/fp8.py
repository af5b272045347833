"""fp8: weights and activations of matrix products in float8 E4M3 (arXiv:2209.05433), the rest in fp16.

E4M3 has 4 significant bits and reaches 448. Its exponent takes the outliers that int8 has no room for, so nothing is
migrated or clipped: on MiniLM a search for smaller scales gained nothing, and SmoothQuant lost a little. Weights are
stored in fp8 behind a DequantizeLinear, by output channel; an activation has one scale, amax / 448. GPUs from compute
capability 8.9 on run it. onnxruntime's CPU provider runs it with its graph optimisation switched off, and not
otherwise: enough to check the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deploykit.graph.prove import Tolerance
from deploykit.precisions import Task, refuse_quantized

CALIBRATED = True
FORMS = {"tensorrt": "symmetric", "tensorrt-rtx": "symmetric"}

# Random tokens are not what it was calibrated on; kernels that are wrong have been seen at 0.82.
TOLERANCE = Tolerance(cosine=0.9, relative_error=0.6)


@dataclass(frozen=True)
class Options:
    """``keep`` names the kinds of products that stay in the ``remainder``'s precision, or glob patterns.

    ``remainder`` is what is computed in between: "fp16" but for the nodes that fp16 would break, or "fp32".
    """

    keep: tuple[str, ...] = ()
    remainder: Literal["fp16", "fp32"] = "fp16"


def lower(task: Task, options: Options, out: Path) -> dict[str, Any]:
    """Write ``out/model.onnx``; returns what was quantized, by kind, and what was kept.

    Raises `RecipeError` where there is too little to calibrate on or no product to quantize, `UnknownNameError` for a
    kind that does not exist, `ExportError` below opset 19, `CheckError` for activations that are not finite.
    """
    import onnx

    from deploykit.quantize import symmetric
    from deploykit.quantize.qdq import Scheme
    from deploykit.quantize.static import Method

    refuse_quantized(onnx.load(task.model, load_external_data=False), "fp8")
    scheme = Scheme("float8e4m3fn", keep=options.keep)
    method = Method(smooth="off", clip=False, correct_bias=False)
    return symmetric.lower(task, scheme, method, options.remainder, out)
