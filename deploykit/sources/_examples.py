"""Inputs of the user's own to prove with: an ``.npz`` of preprocessed tensors, named as the graph's inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from deploykit.errors import InputError, SourceError, nearest
from deploykit.runtime.manifest import TensorSpec


def read(path: str, specs: Sequence[TensorSpec]) -> dict[str, np.ndarray]:
    """The arrays by input name, the first axis counting the inputs, in the graph's types.

    Raises `SourceError` if a name, a type or a shape does not fit the inputs.
    """
    from deploykit.data import tensors

    place = Path(path).expanduser()
    if not place.is_file():
        raise SourceError(
            f"there is no example file '{path}'", hint="write it with numpy.savez(file, input_name=array)"
        )
    try:
        rows = tensors.read(place).inputs
    except InputError as error:
        raise SourceError(error.message, hint=error.hint) from error
    arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    known = [spec.name for spec in specs]
    for name in arrays:
        if name not in known:
            raise SourceError(f"'{place.name}' holds '{name}', which is no input", hint=nearest(name, known))
    return {spec.name: _fitted(spec, arrays, place.name) for spec in specs}


def _fitted(spec: TensorSpec, arrays: Mapping[str, np.ndarray], file: str) -> np.ndarray:
    if spec.name not in arrays:
        raise SourceError(f"'{file}' lacks the input '{spec.name}'", hint="add an array of that name")
    array = arrays[spec.name]
    wanted = spec.shape[1:]
    fits = array.ndim - 1 == len(wanted) and all(
        isinstance(axis, str) or axis == size for axis, size in zip(wanted, array.shape[1:], strict=True)
    )
    if not fits:
        fact = f"'{spec.name}' in '{file}' has the shape {list(array.shape)}, expected {['inputs', *wanted]}"
        raise SourceError(fact, hint="the first axis counts the inputs; the others are as the model takes them")
    if not np.can_cast(array.dtype, spec.dtype, "same_kind"):
        fact = f"'{spec.name}' in '{file}' is {array.dtype}, expected {spec.dtype}"
        raise SourceError(fact, hint=f"convert it with .astype('{spec.dtype}')")
    if not np.isfinite(array).all():
        raise SourceError(f"'{spec.name}' in '{file}' is not finite", hint="take NaN and infinity out of it")
    return array.astype(spec.dtype)


def sizes_of(arrays: Mapping[str, np.ndarray], specs: Sequence[TensorSpec]) -> dict[str, int]:
    """The sizes of the dynamic axes behind the batch in these arrays."""
    return {
        axis: size
        for spec in specs
        for axis, size in zip(spec.shape[1:], arrays[spec.name].shape[1:], strict=True)
        if isinstance(axis, str)
    }


def rows(array: np.ndarray, shape: Sequence[int], start: int) -> np.ndarray:
    """Rows of the array from ``start`` on (round the end), cut or repeated to the other sizes of ``shape``."""
    taken = np.take(array, (start + np.arange(shape[0])) % len(array), axis=0)
    for axis, size in enumerate(shape[1:], start=1):
        if taken.shape[axis] != size:
            taken = np.take(taken, np.arange(size) % taken.shape[axis], axis=axis)
    return np.ascontiguousarray(taken)
