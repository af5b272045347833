"""fp16: weights stored in half the bytes, each behind a cast back to fp32; the arithmetic stays fp32.

This is what runs everywhere: CPUs without fp16 arithmetic execute a true fp16 graph more slowly than fp32. Engines fold
the casts when they load the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.graph.prove import Tolerance

if TYPE_CHECKING:
    import onnx_ir as ir

_LARGEST = 65504.0
_SMALLEST_NORMAL = 2.0**-14

# Fp16 carries 11 significant bits, and only the weights are rounded to it.
TOLERANCE = Tolerance(cosine=0.9999, relative_error=2e-2)


@dataclass(frozen=True)
class Options:
    """Which weights are stored in fp16.

    Tensors of fewer than ``min_elements`` (biases, scales, constants) save nothing and stay fp32. So does a tensor of
    which more than the share ``max_subnormal`` of its values other than zero falls below fp16's smallest normal number,
    2^-14, where digits are lost.
    """

    min_elements: int = 1024
    max_subnormal: float = 0.05


def lower(model: Path, options: Options, out: Path) -> dict[str, Any]:
    """Write ``out/model.onnx``; returns how many weights were stored in fp16, the bytes, and what was kept and why."""
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
    if largest > _LARGEST:
        return f"its largest value, {largest:.3g}, is beyond fp16 (65504)"
    used = size[size > 0]
    share = float((used < _SMALLEST_NORMAL).mean()) if used.size else 0.0
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
