"""Inputs that become constants of the graph: a sampling rate, the zeros that a recurrent model begins with.

``bind = {"state" = "zeros", "sr" = "16000"}``. A constant with a batch axis grows with the batch of the inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.errors import SourceError, nearest
from deploykit.sources._onnx_ports import Port

if TYPE_CHECKING:
    import onnx

_WORDS = {"zeros": 0.0, "ones": 1.0}
_HOW = "write --bind NAME=zeros, NAME=ones, NAME=a number, or NAME=FILE.npy"


def bindings(given: Mapping[str, str], ports: Sequence[Port], name: str) -> dict[str, np.ndarray]:
    """The value of each bound input for one input: an array of the declared shape, 1 where the batch is dynamic.

    Raises `SourceError` for a name that is no input, a value that does not fit, and an input that cannot stay one.
    """
    known = {port.name: port for port in ports}
    for key in given:
        if key not in known:
            raise SourceError(f"bind names '{key}', which is no input of {name}", hint=nearest(key, list(known)))
    left = [port for port in ports if port.name not in given]
    if not left:
        raise SourceError(f"bind leaves {name} no input", hint="leave out the one that the encoder is to be given")
    for port in left:
        if port.axis is None:
            hint = f"give it one value for good: --bind {port.name}=VALUE (such as a sampling rate)"
            raise SourceError(f"'{port.name}' in {name} is a single number, and has no batch axis", hint=hint)
    return {key: _value(known[key], text) for key, text in given.items()}


def _value(port: Port, text: str) -> np.ndarray:
    shape = [dim if isinstance(dim, int) else 1 for dim in port.dims]
    open_axes = [i for i, dim in enumerate(port.dims) if isinstance(dim, str)]
    if text.endswith(".npy"):
        return _fitted(port, _read(port, Path(text).expanduser()))
    if len(open_axes) > 1:
        hint = "give an array of the shape that is meant: --bind NAME=FILE.npy"
        raise SourceError(f"the shape of '{port.name}' is not known: {list(port.dims)}", hint=hint)
    try:
        number: float = _WORDS[text] if text in _WORDS else int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError:
        raise SourceError(f"'{port.name}' cannot be bound to '{text}'", hint=_HOW) from None
    array = np.full(shape, number, port.dtype)
    if float(array.reshape(-1)[0]) != number and np.issubdtype(port.dtype, np.integer):
        raise SourceError(f"'{port.name}' is {port.dtype}, and cannot hold {text}", hint=_HOW)
    return array


def _read(port: Port, path: Path) -> np.ndarray:
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise SourceError(f"'{path}' for '{port.name}' cannot be read: {error}", hint=_HOW) from error


def _fitted(port: Port, array: np.ndarray) -> np.ndarray:
    fits = array.ndim == len(port.dims) and all(
        isinstance(dim, str) or dim == size for dim, size in zip(port.dims, array.shape, strict=True)
    )
    if not fits or not np.can_cast(array.dtype, port.dtype, "same_kind"):
        fact = f"'{port.name}' is {port.dtype} {list(port.dims)}, and the file holds {array.dtype} {list(array.shape)}"
        raise SourceError(fact, hint="write an array of that type and shape with numpy.save")
    return array.astype(port.dtype)


def bind(
    model: onnx.ModelProto, values: Mapping[str, np.ndarray], axes: Mapping[str, int | None], batch: tuple[str, int]
) -> None:
    """Make the inputs constants, in place. ``axes`` names those whose axis grows with the batch, which is the size of
    an axis of an input: ``batch`` is (input, axis).
    """
    from onnx import numpy_helper

    graph = model.graph
    kept = [value for value in graph.input if value.name not in values]
    del graph.input[:]
    graph.input.extend(kept)
    added: list[Any] = []
    for key, array in values.items():
        axis = axes.get(key)
        if axis is None:
            graph.initializer.append(numpy_helper.from_array(array, key))
            continue
        shape = [size if i != axis else -1 for i, size in enumerate(array.shape)]
        added += _grown(graph, key, array, shape, batch)
    old = list(graph.node)
    del graph.node[:]
    graph.node.extend([*added, *old])


def _grown(graph: Any, key: str, array: np.ndarray, shape: Sequence[int], batch: tuple[str, int]) -> list[Any]:
    """Nodes that repeat the array along the axis of ``shape`` that is −1."""
    from onnx import helper, numpy_helper

    name = f"bound_{key}"
    whole = np.asarray(shape, np.int64)
    axis = int(np.flatnonzero(whole == -1)[0])
    constants = {
        f"{name}_value": array,
        f"{name}_axis": np.asarray([batch[1]], np.int64),
        f"{name}_before": whole[:axis],
        f"{name}_behind": whole[axis + 1 :],
    }
    graph.initializer.extend([numpy_helper.from_array(value, label) for label, value in constants.items()])
    return [
        helper.make_node("Shape", [batch[0]], [f"{name}_shape"]),
        helper.make_node("Gather", [f"{name}_shape", f"{name}_axis"], [f"{name}_batch"]),
        helper.make_node("Concat", [f"{name}_before", f"{name}_batch", f"{name}_behind"], [f"{name}_whole"], axis=0),
        helper.make_node("Expand", [f"{name}_value", f"{name}_whole"], [key]),
    ]
