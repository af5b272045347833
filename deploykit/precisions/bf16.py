"""bf16: on CPUs a setting of the engine, which rounds the operands of its matrix products; the graph stays fp32.

A graph whose weights are stored in bf16 is no use to them: ONNX Runtime's CPU provider does not run one, and OpenVINO
was seen to return wrong vectors for one. TensorRT takes its precision from the graph (form ``arithmetic``): there all
is bf16 but what `deploykit.graph.hazards` names. Bf16 reaches as far as fp32, so nothing overflows; with 8 significant
bits it counts to 256, and an angle or an index is soon wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.graph.hazards import BF16
from deploykit.graph.prove import Tolerance
from deploykit.precisions import Task

# Bf16 carries 8 significant bits; kernels that are wrong have been seen at 0.82 and 0.86, not in between.
TOLERANCE = Tolerance(cosine=0.995, relative_error=0.15)

FORMS = {"tensorrt": "arithmetic", "tensorrt-rtx": "arithmetic"}
CALIBRATED = False


@dataclass(frozen=True)
class Options:
    """Where the arithmetic is bf16, ``hazards`` keeps in fp32 what bf16 would break."""

    hazards: bool = True


def lower(task: Task, options: Options, out: Path) -> dict[str, Any]:
    """Leave the graph unchanged, and write nothing; in the form ``arithmetic`` write ``out/model.onnx``.

    Returns then how many nodes compute in bf16, and every hazard with the inputs that its range was measured on.
    """
    import onnx

    from deploykit.graph.export import save
    from deploykit.precisions.fp16 import to_arithmetic

    if task.form != "arithmetic":
        return {"unchanged": True}
    proto, facts = to_arithmetic(onnx.load(task.model), task, form=BF16, hazards=options.hazards)
    save(proto, out / "model.onnx")
    return facts
