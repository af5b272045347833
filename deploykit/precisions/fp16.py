"""fp16: weights in half the bytes; on GPUs the arithmetic is fp16 as well, on CPUs it stays fp32.

CPUs without fp16 arithmetic execute a true fp16 graph more slowly than fp32, so there each weight stands behind a cast
back to fp32, which engines fold when they load the model. GPUs get a strongly typed graph (form ``arithmetic``): fp16
everywhere but in the nodes that `deploykit.graph.hazards` names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.graph.hazards import FP16, Form
from deploykit.graph.prove import Tolerance
from deploykit.precisions import Feeds, Task

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from deploykit.graph.ranges import Ranges

# Fp16 carries 11 significant bits, and only the weights are rounded to it on CPUs. On GPUs the activations are too.
TOLERANCE = Tolerance(cosine=0.9999, relative_error=2e-2)
FORMS = {"tensorrt": "arithmetic", "tensorrt-rtx": "arithmetic", "onnxruntime-cuda": "arithmetic"}
CALIBRATED = False


@dataclass(frozen=True)
class Options:
    """Which weights are stored in fp16, and what is computed in it.

    Tensors of fewer than ``min_elements`` (biases, scales, constants) save nothing and stay fp32. So does a tensor of
    which more than the share ``max_subnormal`` of its values other than zero falls below fp16's smallest normal number,
    2^-14, where digits are lost. Where the arithmetic is fp16, ``hazards`` keeps in fp32 what fp16 would break; without
    it, everything is fp16 whatever comes of it.
    """

    min_elements: int = 1024
    max_subnormal: float = 0.05
    hazards: bool = True


def lower(task: Task, options: Options, out: Path) -> dict[str, Any]:
    """Write ``out/model.onnx``.

    Returns how many weights were stored in fp16, the bytes, and what was kept and why; in the form ``arithmetic`` how
    many nodes compute in fp16, and every hazard with the inputs that its range was measured on.
    """
    return _arithmetic(task, options, out) if task.form == "arithmetic" else _storage(task.model, options, out)


def _arithmetic(task: Task, options: Options, out: Path) -> dict[str, Any]:
    import onnx

    from deploykit.graph.export import save

    proto, facts = to_arithmetic(onnx.load(task.model), task, hazards=options.hazards)
    save(proto, out / "model.onnx")
    return facts


def to_arithmetic(
    given: onnx.ModelProto | ir.Model, task: Task, *, form: Form = FP16, hazards: bool = True
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """An fp32 graph, with Q/DQ or without, as arithmetic of ``form``, and the facts; ``task`` gives inputs to measure
    with. A graph that is `half.typed` already is changed in place.
    """
    import onnx_ir as ir

    from deploykit.graph import half
    from deploykit.graph.hazards import Hazard, clamp_masks, find

    model = given if isinstance(given, ir.Model) else half.typed(given)
    before = weight_bytes(model)
    found: tuple[Hazard, ...] = ()
    facts: dict[str, Any] = {"arithmetic": form.name, "clamped_masks": {}}
    if hazards:
        facts["clamped_masks"] = clamp_masks(model, form)
        ranges = measured_ranges(model, task)
        found = find(model, ranges, form)
        facts["ranges"] = ranges.source
    kept = {hazard.node: f"{hazard.what}: {hazard.why}" for hazard in reversed(found)}
    halved = half.to_half(model, kept, form.name)
    facts |= asdict(halved) | {"hazards": [asdict(hazard) for hazard in found]}
    return ir.to_proto(model), facts | {"bytes_before": before, "bytes_after": weight_bytes(model)}


def measured_ranges(model: ir.Model, task: Task) -> Ranges:
    """The ranges of a model's values on the calibration batches; on seeded inputs where there are none."""
    import onnx_ir as ir

    from deploykit.graph import ranges
    from deploykit.quantize.qdq import fold_weights, pass_activations

    feeds: Sequence[Feeds] = task.calibration or ranges.seeded_inputs(model, task.card)
    rows = sum(len(next(iter(batch.values()))) for batch in feeds)
    kind = "calibration inputs" if task.calibration else "seeded inputs (no calibration data was given)"
    probe = ir.from_proto(ir.to_proto(model))
    weights = fold_weights(probe)
    given_back = pass_activations(probe)
    found = ranges.measure(probe, feeds, f"{rows} {kind}")
    constant = {name: float(np.abs(array).max(initial=0.0)) for name, array in weights.items()}
    # What eight bits give back is no larger than what they were given, but for their rounding.
    passed = {name: found.largest[given] for name, given in given_back.items() if given in found.largest}
    return ranges.Ranges({**found.largest, **constant, **passed}, found.source)


def weight_bytes(model: ir.Model) -> int:
    """The bytes of all constants of the graph."""
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


def _storage(model: Path, options: Options, out: Path) -> dict[str, Any]:
    import onnx
    import onnx_ir as ir

    from deploykit.graph.export import save

    graph_model = ir.from_proto(onnx.load(model))
    graph = graph_model.graph
    kept: dict[str, str] = {}
    stored = before = after = 0
    for name, value in list(graph.initializers.items()):
        if value.dtype != ir.DataType.FLOAT or value.is_graph_output() or value.is_graph_input():
            continue
        tensor = value.const_value
        if tensor is None or tensor.size < options.min_elements:
            continue
        array = tensor.numpy()
        reason = _reason_to_keep(array, options)
        if reason:
            kept[name] = reason
            continue
        _store(graph, value, array)
        stored, before, after = stored + 1, before + array.nbytes, after + array.nbytes // 2
    save(ir.to_proto(graph_model), out / "model.onnx")
    return {"stored_fp16": stored, "bytes_before": before, "bytes_after": after, "kept_fp32": kept}


def _reason_to_keep(array: np.ndarray, options: Options) -> str:
    """Why a tensor stays fp32; empty when it does not."""
    if not np.isfinite(array).all():
        return "it holds infinity or NaN"
    size = np.abs(array)
    largest = float(size.max())
    if largest > FP16.largest:
        return f"its largest value, {largest:.3g}, is beyond fp16 (65504)"
    used = size[size > 0]
    share = float((used < FP16.smallest).mean()) if used.size else 0.0
    if share > options.max_subnormal:
        return f"{share:.0%} of its values are subnormal in fp16 (below 2^-14)"
    return ""


def _store(graph: ir.Graph, value: ir.Value, array: np.ndarray) -> None:
    """Put an fp16 initializer and a Cast in the place of an fp32 one."""
    import onnx_ir as ir

    name = value.name
    assert name is not None
    half = ir.tensor(array.astype(np.float16), name=f"{name}.fp16")
    stored = ir.Value(name=f"{name}.fp16", shape=half.shape, type=ir.TensorType(half.dtype), const_value=half)
    cast = ir.node("Cast", [stored], {"to": int(ir.DataType.FLOAT)})
    cast.outputs[0].name = f"{name}.fp32"
    cast.outputs[0].dtype, cast.outputs[0].shape = ir.DataType.FLOAT, value.shape
    ir.convenience.replace_all_uses_with(value, cast.outputs[0])
    del graph.initializers[name]
    graph.register_initializer(stored)
    graph.insert_before(graph[0], cast)
