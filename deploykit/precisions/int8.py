"""int8: weights and activations of matrix products in 8 bits, with scales chosen on calibration inputs.

Each target wants its own form of the graph: onnxruntime's CPU kernels multiply unsigned activations by signed weights,
OpenVINO takes what NNCF makes of the model, TensorRT takes signed activations without zero points. What is not a
product stays fp32, and so do the kinds of products named in ``keep``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deploykit.graph.prove import Tolerance
from deploykit.precisions import EXACT_INT8, Task, adds_int8_exactly, refuse_quantized

CALIBRATED = True
FORMS = {
    "openvino": "openvino",
    "onnxruntime": "onnxruntime",
    "tensorrt": "symmetric",
    "tensorrt-rtx": "symmetric",
}

# Random tokens are not what it was calibrated on: MiniLM's worst case is 0.984 there, and 0.963 with 7 bits. Kernels
# that are wrong have been seen at 0.82.
TOLERANCE = Tolerance(cosine=0.9, relative_error=0.6)


@dataclass(frozen=True)
class Options:
    """``keep`` names the kinds of products that stay fp32, as the facts list them, or as glob patterns.

    ``cpu``: "vnni" uses all 8 bits of a weight, which needs a CPU that adds the products in 32 bits; "any" uses 7, with
    which no CPU saturates; "auto" is what this machine has. ``smooth`` migrates outliers of activations into weights;
    where that cannot be folded into another operation it costs a multiplication: 3 % of MiniLM's time on onnxruntime,
    for two thirds less drift. ``rounding`` "gptq" lets weights make up for the rounding of others. ``embeddings``
    stores embedding tables in int8 too, one scale per row; it counts for onnxruntime (NNCF does so by itself).
    """

    keep: tuple[str, ...] = ()
    cpu: Literal["auto", "vnni", "any"] = "auto"
    smooth: bool = True
    rounding: Literal["nearest", "gptq"] = "nearest"
    embeddings: bool = True


def resolve(options: Options) -> Options:
    """Put what this machine's CPU has in the place of ``cpu = "auto"``."""
    if options.cpu != "auto":
        return options
    return dataclasses.replace(options, cpu="vnni" if adds_int8_exactly() else "any")


def lower(task: Task, options: Options, out: Path) -> dict[str, Any]:
    """Write ``out/model.onnx`` in the task's form; returns what was quantized, by kind, and what was kept.

    Raises `RecipeError` where there is too little to calibrate on or no product to quantize, `UnknownNameError` for a
    kind that does not exist, `CheckError` for activations that are not finite.
    """
    import onnx

    refuse_quantized(onnx.load(task.model, load_external_data=False), "int8")
    if task.form == "openvino":
        from deploykit.quantize import with_nncf

        return with_nncf.quantize(task, resolve(options), out)
    if task.form == "symmetric":
        from deploykit.quantize import symmetric

        return symmetric.quantize(task, options, out)
    return _for_onnxruntime(task, options, out)


def _for_onnxruntime(task: Task, options: Options, out: Path) -> dict[str, Any]:
    from deploykit.quantize import static
    from deploykit.quantize.qdq import Scheme

    seven_bits = resolve(options).cpu == "any"
    scheme = Scheme("uint8", reduce_range=seven_bits, keep=options.keep)
    # Without outliers there is nothing to gain by clipping, and what calibration did not show is lost by it.
    method = static.Method(
        smooth="mul" if options.smooth else "off",
        clip=not options.smooth,
        rounding=options.rounding,
        embeddings=options.embeddings,
    )
    facts = static.quantize(task, scheme, method, out)
    return facts if seven_bits else facts | {"requires": {"cpu_features": [EXACT_INT8]}}
