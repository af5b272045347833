"""Precisions: one file per way of lowering.

A file ``precisions/NAME.py`` offers

- ``Options``, a frozen dataclass;
- ``TOLERANCE``, how far off its vectors may be at every point of the proof;
- ``FORMS``, for targets that want the graph in a form of their own: ``{"tensorrt": "symmetric"}``; a target that is not
  in it gets the form ``""``, and targets of one form share one lowered graph;
- ``TARGETS``, in a package of its own: ``{"onnxruntime": "int8"}`` names each target that takes its graphs, and the
  precision of that target as which it compiles them (left out where a target lists the name in its ``PRECISIONS``);
- ``CALIBRATED``, whether `lower` needs ``task.calibration``;
- ``BATCH_DEPENDENT = True`` where a vector changes with the rest of its batch (left out elsewhere): such a variant is
  never the default of a bundle while another will do;
- and the function::

    def lower(task: Task, options: Options, out: Path) -> dict[str, Any]

It reads the portable fp32 ONNX at ``task.model``, writes ``out / "model.onnx"`` and returns the facts for the audit
trail (what was changed, what was kept and why). Among the facts, ``requires`` is what the lowered graph asks of a
device, and ``notes`` are sentences for the user. A precision that an engine reaches through a setting and not through
the graph (bf16 on CPUs) returns ``{"unchanged": True}`` and writes nothing: the target then reads the fp32 model.

Where the best graph depends on the machine, ``resolve(options) -> Options`` puts what this machine has in the place of
``"auto"``; it is called when the run is planned, so that what was decided is part of the step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploykit.errors import RecipeError
from deploykit.runtime import hardware
from deploykit.runtime.manifest import Card

if TYPE_CHECKING:
    import onnx

_QUANTIZED = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"}
    | {"DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulIntegerToFloat", "MatMulNBits"}
)

#: Kernels for a CPU with any of these add products of 8 bits in 32 bits: x86's VNNI, and every 64-bit ARM. Others
#: saturate at 16, unless a bit of the weights is given up.
EXACT_INT8 = "avx512_vnni|avx_vnni|asimd"

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Task:
    """What is to be lowered.

    ``form`` is what the target wants (see ``FORMS``). ``calibration`` are batches of real inputs at their real lengths,
    by input name; empty for a precision that is not calibrated.
    """

    model: Path
    card: Card
    form: str = ""
    calibration: Sequence[Feeds] = ()


def refuse_quantized(model: onnx.ModelProto, precision: str) -> None:
    """`RecipeError` for a graph that was quantized before: its ranges are lost if they are rounded once more."""
    found = Counter(node.op_type for node in model.graph.node if is_quantized(node.op_type))
    if found:
        listed = ", ".join(f"{count} {name}" for name, count in found.most_common(3))
        raise RecipeError(
            f"the model is quantized already ({listed}), and {precision} would quantize it again",
            hint="fp32 runs it as it is (-p fp32); for another int8 give the model that it was quantized from",
        )


def is_quantized(operator: str) -> bool:
    """Whether an operator of this name reads or writes quantized numbers."""
    return operator in _QUANTIZED or operator.startswith(("QLinear", "QAttention", "QGemm", "QEmbed"))


def adds_int8_exactly() -> bool:
    """Whether this machine is one of `EXACT_INT8`."""
    return not hardware.cpu_features().isdisjoint(EXACT_INT8.split("|"))
