"""The ranges of a graph's inner values on inputs: real ones, or seeded ones for a model that comes without data."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploykit.runtime.hardware import usable_cores
from deploykit.runtime.manifest import Card

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

Feeds = Mapping[str, np.ndarray]

#: Operators that only move the numbers of their inputs.
MOVING = frozenset(
    {
        "Concat",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Reshape",
        "Slice",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
# Those of them that keep every number.
_KEEPING = MOVING - {"Concat", "Gather", "Slice"}
# Inputs go through together up to so many numbers: some texts, and images one by one.
_STACKED_NUMBERS = 1024


@dataclass(frozen=True)
class Ranges:
    """The largest |x| of every float value on some inputs, and which inputs these were (``source``)."""

    largest: Mapping[str, float]
    source: str


def measure(model: ir.Model, batches: Sequence[Feeds], source: str) -> Ranges:
    """Run the fp32 graph on onnxruntime and take the largest |x| of every float value over all batches."""
    import onnx_ir as ir

    values = [output for node in model.graph for output in node.outputs if output.dtype == ir.DataType.FLOAT]
    alike = {str(value.name): made_of for value in values if value.name and (made_of := _moved_from(value))}
    proto = ir.to_proto(model)
    largest: dict[str, float] = {}
    run = _session(proto, [value.name for value in values if value.name and value.name not in alike])
    for feeds, _ in stacked(proto, batches):
        for name, low, high in run(feeds):
            largest[name] = max(largest.get(name, 0.0), -float(low), float(high))
        for name, array in feeds.items():
            if array.dtype == np.float32 and array.size:
                largest[name] = max(largest.get(name, 0.0), -float(array.min()), float(array.max()))
    for name, made_of in alike.items():  # in the graph's order, so that what they are made of is known
        if made_of in largest:
            largest[name] = largest[made_of]
    return Ranges(largest, source)


def _moved_from(value: ir.Value) -> str:
    """The name of another value that holds the same numbers; empty where there is none that the graph computes."""
    node = value.producer()
    source = None if node is None or node.op_type not in _KEEPING else node.inputs[0]
    return str(source.name) if source is not None and (source.producer() is not None) else ""


def threads() -> int:
    """How many threads a session that only looks at a graph takes: the cores, or as many as OMP_NUM_THREADS allows."""
    allowed = os.environ.get("OMP_NUM_THREADS", "")
    return min(usable_cores(), int(allowed)) if allowed.isdigit() and int(allowed) else usable_cores()


def stacked(model: onnx.ModelProto, singles: Sequence[Feeds]) -> list[tuple[Feeds, tuple[int, ...]]]:
    """Inputs of one size in one batch, as far as that is small, with their places; nothing is padded.

    Most of the time that a short text takes is not its own but the graph's.
    """
    free = all(not value.type.tensor_type.shape.dim[0].HasField("dim_value") for value in model.graph.input)
    groups: dict[object, list[int]] = {}
    for i, feeds in enumerate(singles):
        shapes = tuple((name, array.shape) for name, array in feeds.items())
        most = _STACKED_NUMBERS // max((array.size for array in feeds.values()), default=1)
        alone = not free or most < 2 or any(array.shape[:1] != (1,) for array in feeds.values())
        group = groups.setdefault(i if alone else shapes, [])
        group.append(i)
        if len(group) >= most:
            groups[object()] = groups.pop(i if alone else shapes)
    return [
        ({name: np.concatenate([singles[i][name] for i in group]) for name in singles[group[0]]}, tuple(group))
        for group in groups.values()
    ]


def _session(
    proto: onnx.ModelProto, names: Sequence[str]
) -> Callable[[Feeds], Iterable[tuple[str, np.ndarray, np.ndarray]]]:
    """A function from feeds to (name, smallest, largest) of the named inner values of the unoptimised graph."""
    import tempfile

    import onnx
    import onnxruntime

    del proto.graph.output[:]
    # The extremes are taken inside the graph: its values together are too large to be handed out.
    for i, name in enumerate(names):
        for op_type in ("ReduceMin", "ReduceMax"):
            extreme = f"extreme.{i}.{op_type}"
            proto.graph.node.append(onnx.helper.make_node(op_type, [name], [extreme], keepdims=0))
            proto.graph.output.append(onnx.helper.make_tensor_value_info(extreme, onnx.TensorProto.FLOAT, []))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.onnx"
        onnx.save(proto, path, save_as_external_data=True, location="probe.data")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    taken = {value.name for value in session.get_inputs()}

    def run(feeds: Feeds) -> Iterable[tuple[str, np.ndarray, np.ndarray]]:
        found = session.run(None, {name: array for name, array in feeds.items() if name in taken})
        return zip(names, found[::2], found[1::2], strict=True)

    return run


def seeded_inputs(model: ir.Model, card: Card) -> list[dict[str, np.ndarray]]:
    """Inputs as the proof makes them, for a model that comes without data: two sizes inside its limits, seeded.

    Integers that index a table are drawn from its rows; other integers and booleans are a mask with padding; floats are
    standard normal.
    """
    feeds = []
    for seed, scale in enumerate((1, 8)):
        rng = np.random.default_rng(seed)
        sizes = {"batch": 3, "length": 16, "frames": 50, "height": 64, "width": 64, "samples": 8000}
        for axis, (low, high) in card.limits.axes.items():
            sizes[axis] = int(np.clip(sizes.get(axis, 16) * scale, low, high))
        batch = {}
        for spec in card.inputs:
            shape = [axis if isinstance(axis, int) else sizes.get(axis, 16) for axis in spec.shape]
            value = next((v for v in model.graph.inputs if v.name == spec.name), None)
            batch[spec.name] = _seeded(rng, shape, np.dtype(spec.dtype), None if value is None else _rows(value))
        feeds.append(batch)
    return feeds


def _seeded(rng: np.random.Generator, shape: list[int], dtype: np.dtype, rows: int | None) -> np.ndarray:
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    if rows is not None:
        return rng.integers(0, rows, shape).astype(dtype)
    mask = np.ones(shape, dtype)
    if len(shape) > 1:
        mask[1:, ..., max(1, shape[-1] * 3 // 4) :] = 0
    return mask


def _rows(value: ir.Value) -> int | None:
    """The rows of the smallest table that an integer input looks up, through what only moves it."""
    rows: list[int] = []
    waiting, seen = [value], {value}
    while waiting:
        for node, index in waiting.pop().uses():
            table = node.inputs[0]
            if node.op_type == "Gather" and index == 1 and table is not None and table.shape is not None:
                size = table.shape[0]
                if isinstance(size, int) and table.const_value is not None:
                    rows.append(size)
            elif index == 0 and node.op_type in MOVING | {"Cast"} and node.outputs[0] not in seen:
                seen.add(node.outputs[0])
                waiting.append(node.outputs[0])
    return min(rows, default=None)
