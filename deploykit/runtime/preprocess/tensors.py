"""Kind ``none``: the inputs are the graph's own tensors; they are checked, cast within their kind and batched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.runtime.errors import BundleError, InputError, nearest
from deploykit.runtime.manifest import Card, TensorSpec
from deploykit.runtime.preprocess import Item

MASK = "attention_mask"


class Preprocessor:
    """Takes one dict of arrays per input, or one array where the graph has one input; none has the batch axis.

    A whole batch may come as one dict of arrays that do have it.
    """

    def __init__(self, inputs: Sequence[TensorSpec], bounds: Mapping[str, tuple[int, int]]) -> None:
        self._specs = {spec.name: spec for spec in inputs}
        self._bounds = bounds
        mask = self._specs.get(MASK)
        self._paddable = {axis for axis in mask.shape[1:] if isinstance(axis, str)} if mask else set[str]()

    @classmethod
    def open(cls, card: Card, root: Path) -> Preprocessor:
        """Read ``card``; kind ``none`` has no options and no files."""
        extra = sorted(set(card.preprocess) - {"kind"})
        if extra:
            raise BundleError(f"card.preprocess has the unknown key '{extra[0]}'", hint="kind 'none' has no options")
        return cls(card.inputs, card.limits.axes)

    def items(self, inputs: Sequence[Any] | Mapping[str, Any], *, kind: str | None = None) -> list[Item]:
        """One item per input, cost in elements of its largest tensor; `InputError` names the first misfit."""
        if kind is not None:
            raise InputError(f"kind={kind!r} was asked for, and this encoder has no prompts", hint="leave kind out")
        rows = _rows(inputs) if isinstance(inputs, Mapping) else inputs
        return [self._item(row, index) for index, row in enumerate(rows)]

    def collate(self, items: Sequence[Item]) -> dict[str, np.ndarray]:
        """Stack; an axis that ``attention_mask`` has is padded with zeros, any other must be of one size."""
        return {name: self._stack(spec, [item.tensors[name] for item in items]) for name, spec in self._specs.items()}

    def _stack(self, spec: TensorSpec, arrays: Sequence[np.ndarray]) -> np.ndarray:
        shapes = {array.shape for array in arrays}
        if len(shapes) == 1:
            return np.stack(arrays)
        largest = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
        for axis, sizes in zip(spec.shape[1:], zip(*shapes, strict=True), strict=True):
            if len(set(sizes)) > 1 and axis not in self._paddable:
                hint = "batch inputs of equal size: without an attention_mask nothing marks padding"
                raise InputError(
                    f"one batch of '{spec.name}' holds sizes {sorted(set(sizes))} of axis '{axis}'", hint=hint
                )
        batch = np.zeros((len(arrays), *largest), arrays[0].dtype)
        for row, array in zip(batch, arrays, strict=True):
            row[tuple(slice(size) for size in array.shape)] = array
        return batch

    def _item(self, value: Any, index: int) -> Item:
        if not isinstance(value, Mapping):
            if len(self._specs) > 1:
                names = ", ".join(self._specs)
                raise InputError(f"input {index} is one array, and the graph has {names}", hint="pass a dict of arrays")
            value = {next(iter(self._specs)): value}
        for name in value:
            if name not in self._specs:
                raise InputError(
                    f"input {index} has the unknown tensor '{name}'", hint=nearest(name, list(self._specs))
                )
        for name in self._specs:
            if name not in value:
                raise InputError(f"input {index} lacks the tensor '{name}'", hint=f"give {', '.join(self._specs)}")
        tensors = {name: _tensor(value[name], spec, index) for name, spec in self._specs.items()}
        self._check_axes(tensors, index)
        return Item(tensors, max(tensor.size for tensor in tensors.values()))

    def _check_axes(self, tensors: Mapping[str, np.ndarray], index: int) -> None:
        """Axes of one name agree in size within an input and stay inside the proven bounds."""
        seen: dict[str, tuple[str, int]] = {}
        for name, tensor in tensors.items():
            for axis, size in zip(self._specs[name].shape[1:], tensor.shape, strict=True):
                if not isinstance(axis, str):
                    continue
                first, known = seen.setdefault(axis, (name, size))
                if size != known:
                    message = f"input {index} has {axis} {known} in '{first}' and {size} in '{name}'"
                    raise InputError(message, hint="axes of the same name have the same size")
                low, high = self._bounds.get(axis, (size, size))
                if not low <= size <= high:
                    message = f"input {index} has {axis} {size} in '{name}', and {low} to {high} is proven"
                    raise InputError(message, hint="cut or pad it")


def _rows(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One dict per row of a dict of batched arrays."""
    counts = {name: np.shape(array)[0] if np.ndim(array) else 0 for name, array in batch.items()}
    if len(set(counts.values())) > 1:
        raise InputError(f"the batch has {counts} rows", hint="give every tensor the same first axis")
    return [{name: array[row] for name, array in batch.items()} for row in range(next(iter(counts.values()), 0))]


def _tensor(value: Any, spec: TensorSpec, index: int) -> np.ndarray:
    """``value`` as an array of the type and shape of ``spec`` without its batch axis."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise InputError(f"input {index}: '{spec.name}' is no array: {error}", hint="pass numpy arrays") from error
    want = np.dtype(spec.dtype)
    if not np.can_cast(array.dtype, want, "same_kind"):
        hint = f"convert it with .astype('{want}') if that is what you mean"
        raise InputError(f"input {index}: '{spec.name}' is {array.dtype} and the graph takes {want}", hint=hint)
    fits = len(array.shape) == len(spec.shape) - 1 and all(
        isinstance(axis, str) or axis == size for axis, size in zip(spec.shape[1:], array.shape, strict=True)
    )
    if not fits:
        hint = "the first axis of the graph's input is the batch: leave it out of a single input"
        shapes = f"{list(array.shape)} and one input is {list(spec.shape[1:])}"
        raise InputError(f"input {index}: '{spec.name}' has the shape {shapes}", hint=hint)
    if 0 in array.shape:
        raise InputError(f"input {index}: '{spec.name}' is empty, shape {list(array.shape)}", hint="leave it out")
    return array.astype(want, copy=False)
