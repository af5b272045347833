"""Runs calibration inputs through the fp32 graph and keeps what choosing scales needs of its activations.

Inputs go through without their padding, so that no padded position is counted: a batch is taken apart, each row cut to
its own length, and only what is of one size goes through together. Activations are read in groups, as extra outputs of
a session, so that memory holds a few inputs' activations of one group at a time.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploykit.errors import CheckError
from deploykit.graph.ranges import stacked, threads

if TYPE_CHECKING:
    import onnx

Feeds = Mapping[str, np.ndarray]

_TENSORS_AT_A_TIME = 32
_ROWS_BYTES = 512 << 20
_MAX_ROWS = 2048


@dataclass(frozen=True)
class Observed:
    """What an activation of C channels held: ``low``, ``high`` and ``mean`` float32 [C] over every position.

    ``rows`` float32 [n, C] are positions drawn at random, as many from each input, for errors to be measured on;
    ``count`` is how many positions there were. A tensor observed as a whole has one channel.
    """

    name: str
    low: np.ndarray = field(repr=False)
    high: np.ndarray = field(repr=False)
    mean: np.ndarray = field(repr=False)
    rows: np.ndarray = field(repr=False)
    count: int

    @property
    def largest(self) -> np.ndarray:
        """Largest absolute value by channel, float32 [C]."""
        return np.asarray(np.maximum(np.abs(self.low), np.abs(self.high)))


@dataclass
class _Running:
    """The statistics of one activation while inputs come in."""

    low: np.ndarray
    high: np.ndarray
    total: np.ndarray
    count: int
    rows: list[np.ndarray]


def observe(
    model: onnx.ModelProto, wanted: Mapping[str, int | None], batches: Sequence[Feeds], seed: int = 0
) -> dict[str, Observed]:
    """Statistics of the ``wanted`` activations, {value: its channel axis, or None to observe it as a whole}.

    Raises `CheckError` when an activation is not finite, with its node and the calibration input.
    """
    singles = list(single_inputs(model, batches))
    whole = [i for i, (_, mask) in enumerate(singles) if mask is None]
    grouped = [
        (feeds, tuple(whole[i] for i in group)) for feeds, group in stacked(model, [singles[i][0] for i in whole])
    ]
    grouped += [(feeds, (i,)) for i, (feeds, mask) in enumerate(singles) if mask is not None]
    known: dict[str, _Running] = {}
    rng = np.random.default_rng(seed)
    names = _in_graph_order(model, wanted)
    for start in range(0, len(names), _TENSORS_AT_A_TIME):
        group = names[start : start + _TENSORS_AT_A_TIME]
        with running(model, group) as run:
            for feeds, places in grouped:
                for name, array in zip(group, run(feeds), strict=True):
                    if not np.isfinite(array).all():
                        raise _not_finite(model, name, _first_bad(run, group.index(name), singles, places))
                    rows = _as_rows(array, wanted[name], singles[places[0]][1])
                    share = len(places) * _share(len(names), rows.shape[1], len(singles))
                    _add(known, name, rows, share, rng)
    return {name: _finish(name, statistics) for name, statistics in known.items()}


def single_inputs(
    model: onnx.ModelProto, batches: Sequence[Feeds]
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray | None]]:
    """Each input of each batch as a batch of one, cut to its length, with its mask [1, length] where it cannot be cut.

    A batch stays whole where the graph fixes its size. Padding is only cut at the end: what stands behind padding at
    the front has other positions.
    """
    axes = {value.name: _axes(value) for value in model.graph.input}
    for batch in batches:
        count = next(iter(batch.values())).shape[0] if batch else 0
        free = all(
            array.ndim and array.shape[0] == count and not isinstance(axes[name][0], int)
            for name, array in batch.items()
        )
        rows = (
            [{name: array[i : i + 1] for name, array in batch.items()} for i in range(count)] if free else [dict(batch)]
        )
        for row in rows:
            yield _cut(row, axes)


def _cut(
    feeds: dict[str, np.ndarray], axes: Mapping[str, Sequence[int | str]]
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    mask = feeds.get("attention_mask")
    if mask is None or mask.ndim != 2 or mask.all():
        return feeds, None
    length = int(mask.astype(bool).sum(1).max())
    axis = axes["attention_mask"][1]
    if isinstance(axis, int) or length == 0 or not mask[:, :length].all():
        return feeds, mask.astype(bool)
    for name, array in feeds.items():
        for i, label in enumerate(axes[name]):
            if label == axis:
                array = array.take(np.arange(length), axis=i)
        feeds[name] = array
    return feeds, None


def _axes(value: onnx.ValueInfoProto) -> list[int | str]:
    """The axes of an input: a number where it is fixed, else the axis's name (its position where it has none)."""
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or f"?{i}" for i, dim in enumerate(dims)]


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The model with the named values as its only outputs; its weights are copied."""
    import onnx

    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.output[:]
    changed.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names
    )
    return changed


@contextmanager
def running(model: onnx.ModelProto, names: Sequence[str]) -> Iterator[Callable[[Feeds], list[np.ndarray]]]:
    """A function from inputs to the named values, on onnxruntime's CPU provider."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        # Weights stand beside the graph: one protobuf message holds no more than 2 GiB.
        onnx.save(with_outputs(model, names), path, save_as_external_data=True, location="weights")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        taken = {value.name for value in session.get_inputs()}
        yield lambda feeds: session.run(list(names), {name: array for name, array in feeds.items() if name in taken})


def _in_graph_order(model: onnx.ModelProto, wanted: Mapping[str, int | None]) -> list[str]:
    made = [value.name for value in model.graph.input] + [name for node in model.graph.node for name in node.output]
    return [name for name in made if name in wanted]


def _as_rows(array: np.ndarray, axis: int | None, mask: np.ndarray | None) -> np.ndarray:
    """The positions of an activation as [n, channels], padded ones left out where the mask fits its first two axes."""
    if axis is None:
        return array.reshape(-1, 1)
    moved = np.moveaxis(array, axis, -1)
    if mask is not None and moved.ndim > 2 and moved.shape[:2] == mask.shape:
        moved = moved[mask]
    return moved.reshape(-1, moved.shape[-1])


def _share(tensors: int, channels: int, inputs: int) -> int:
    """How many rows to keep of one input: all tensors' rows stay under `_ROWS_BYTES` together."""
    most = min(_MAX_ROWS if channels > 1 else 1 << 17, _ROWS_BYTES // (4 * channels * max(tensors, 1)))
    return max(1, math.ceil(most / inputs))


def _add(every: dict[str, _Running], name: str, rows: np.ndarray, keep: int, rng: np.random.Generator) -> None:
    if not len(rows):
        return
    drawn = rows[rng.choice(len(rows), keep, replace=False)] if len(rows) > keep else rows.copy()
    low, high, total = rows.min(0), rows.max(0), rows.sum(0, dtype=np.float64)
    known = every.get(name)
    if known is None:
        every[name] = _Running(low, high, total, len(rows), [drawn])
        return
    np.minimum(known.low, low, out=known.low)
    np.maximum(known.high, high, out=known.high)
    known.total += total
    known.count += len(rows)
    known.rows.append(drawn)


def _finish(name: str, known: _Running) -> Observed:
    mean = (known.total / known.count).astype(np.float32)
    return Observed(name, known.low, known.high, mean, np.concatenate(known.rows), known.count)


def _first_bad(
    run: Callable[[Feeds], list[np.ndarray]],
    index: int,
    singles: Sequence[tuple[Feeds, np.ndarray | None]],
    places: Sequence[int],
) -> int:
    """Which of the inputs of a group makes the ``index``-th value that is not finite."""
    bad = (place for place in places if not np.isfinite(run(singles[place][0])[index]).all())
    return next(bad, places[0])


def _not_finite(model: onnx.ModelProto, name: str, index: int) -> CheckError:
    node = next((node for node in model.graph.node if name in node.output), None)
    made = f"written by the {node.op_type} node '{node.name}'" if node is not None else "an input of the model"
    return CheckError(
        f"the activation '{name}' ({made}) holds NaN or infinity for calibration input {index}",
        hint="look at that input, counted from 0, and at the node: no range can be chosen for what is not a number",
    )
