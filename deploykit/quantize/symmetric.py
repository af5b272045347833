"""Int8 and float8 for TensorRT: no zero points, one scale for an activation, float biases, and fp16 all around.

TensorRT multiplies signed numbers by signed numbers. Data that lies on one side of zero, as behind a Gelu, uses half of
such a type, so outliers are migrated into the weights (SmoothQuant, arXiv:2211.10438) wherever a migration pays, also
where it takes a Mul, which an engine can fuse with the quantizer behind it. Where migrations
had to cost nothing, MiniLM's mean cosine fell from 0.997 to 0.975, and quantizing fewer products did not make up for
it; so no kind is kept unless it is asked for. Attention's products of two activations stay as they are, in the form
that the engine fuses.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deploykit.precisions import Task

if TYPE_CHECKING:
    from deploykit.precisions import int8
    from deploykit.quantize.qdq import Scheme
    from deploykit.quantize.static import Method

Remainder = Literal["fp16", "fp32"]

# TensorRT builds int8 Q/DQ engines from this compute capability on, and float8 ones from that.
_COMPUTE_CAPABILITY = {"int8": "8.0", "float8e4m3fn": "8.9"}


def quantize(task: Task, options: int8.Options, out: Path) -> dict[str, Any]:
    """Write ``out/model.onnx`` in symmetric int8, the rest in fp16; returns what was quantized and kept, and why.

    Raises what `lower` does.
    """
    from deploykit.quantize.qdq import Scheme
    from deploykit.quantize.static import Method

    scheme = Scheme("int8", keep=options.keep)
    method = Method(smooth="mul" if options.smooth else "off", rounding=options.rounding)
    return lower(task, scheme, method, "fp16", out)


def lower(task: Task, scheme: Scheme, method: Method, remainder: Remainder, out: Path) -> dict[str, Any]:
    """Quantize the task's model, compute the rest in ``remainder``, check the graph and write ``out/model.onnx``.

    Raises `RecipeError` where there is too little to calibrate on or nothing to quantize, `UnknownNameError` for a kind
    that does not exist, and `CheckError` for a graph that TensorRT would not take.
    """
    import onnx
    import onnx_ir as ir

    from deploykit.graph.export import save
    from deploykit.graph.half import typed
    from deploykit.precisions.fp16 import to_arithmetic
    from deploykit.quantize import lint, static
    from deploykit.quantize.qdq import insert

    static.check_calibration(task.calibration)
    model = typed(onnx.load(task.model))
    decided = static.decide(model, scheme, method, task.calibration)
    insert(model, decided.products, decided.ranges, decided.weights, decided.scheme)
    facts = static.facts_of(decided, task.calibration) | {"remainder": remainder}
    if remainder == "fp16":
        proto, facts["rest"] = to_arithmetic(model, task)
    else:
        proto = ir.to_proto(model)
    lint.enforce(proto)
    save(proto, out / "model.onnx")
    return facts | {"requires": {"compute_capability": _COMPUTE_CAPABILITY[scheme.activation]}}
