"""Ready tensors in an .npz."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from deploykit.data import Dataset
from deploykit.errors import InputError


def read(path: Path) -> Dataset:
    """The arrays of an .npz as inputs: input i is {name: array[i]}; pickled objects are refused."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        hint = "write it with numpy.savez(file, input_name=array, …)"
        raise InputError(f"'{path.name}' is not a readable .npz of plain arrays: {error}", hint=hint) from None
    counts = {name: array.shape[0] if array.ndim else 0 for name, array in arrays.items()}
    if not counts or set(counts.values()) == {0}:
        raise InputError(f"'{path.name}' holds no inputs", hint="its arrays need a first axis that counts the inputs")
    if len(set(counts.values())) > 1:
        sizes = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise InputError(f"the arrays of '{path.name}' count different inputs: {sizes}", hint="make them as many")
    count = next(iter(counts.values()))
    return Dataset(path.name, "tensor", [{name: array[i] for name, array in arrays.items()} for i in range(count)])
