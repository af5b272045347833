"""What both sides encode: the data that is given, or else what the baseline's self-test and deploykit bring along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploykit import data
from deploykit.data import Dataset
from deploykit.errors import InputError, UnknownNameError, nearest
from deploykit.runtime.bundle import Bundle
from deploykit.runtime.selftest import read_inputs

#: Inputs of a timed batch: a process takes 64 calls of it, and there are up to 140 processes.
BATCH = 8
#: What is timed, unless one of them is chosen.
WORKLOADS = ("single", "batch")
_BUILTIN = {"text": "builtin:sentences", "image": "builtin:images", "audio": "builtin:tones"}


def dataset(spec: str | None, examples: str | None) -> Dataset:
    """The data that ``spec`` names; without one the self-test's inputs of the bundle ``examples``, and the builtin set
    of its modality.
    """
    if spec is not None:
        return data.read(spec)
    assert examples is not None
    bundle = Bundle.open(examples)
    modality = bundle.manifest.card.modality
    inputs = read_inputs(bundle)
    if isinstance(inputs, Mapping):
        count = len(next(iter(inputs.values())))
        return Dataset("the self-test's inputs", modality, [{k: v[i] for k, v in inputs.items()} for i in range(count)])
    known = data.read(_BUILTIN[modality])
    return Dataset(f"the self-test's inputs and {known.name}", modality, [*inputs, *known.inputs])


def check_workload(name: str | None) -> None:
    """`UnknownNameError` for what is no workload."""
    if name not in (None, *WORKLOADS):
        raise UnknownNameError(f"there is no workload '{name}'", hint=nearest(str(name), WORKLOADS))


def points(found: Dataset, folder: Path, only: str | None = None) -> list[dict[str, Any]]:
    """The timed workloads, as jobs of the measuring process want them: ``single``, one input of middling size, and
    ``batch``, `BATCH` inputs over all sizes; or the one called ``only``. What JSON cannot hold goes into files below
    ``folder``. `InputError` where a batch was asked for and there is one input.
    """
    order = _by_size(found)
    chosen = {"single": [order[len(order) // 2]]}
    if len(order) > 1:
        count = min(BATCH, len(order))
        chosen["batch"] = [order[(2 * i + 1) * len(order) // (2 * count)] for i in range(count)]
    if only is not None and only not in chosen:
        raise InputError(f"{found.name} holds one input, which makes no batch", hint="give more data, or time single")
    return [
        {"name": name, "inputs": _kept([found.inputs[place] for place in places], folder / f"{name}.npz")}
        for name, places in chosen.items()
        if only in (None, name)
    ]


def _by_size(found: Dataset) -> Sequence[int]:
    """Places in order of size; of tensors only those of the first one's shapes, since they are to share a batch."""
    if found.modality == "tensor":
        shapes = [tuple(sorted((k, np.shape(v)) for k, v in item.items())) for item in found.inputs]
        return [place for place, shape in enumerate(shapes) if shape == shapes[0]]
    sizes = [_size(item) for item in found.inputs]
    return sorted(range(len(sizes)), key=lambda place: (sizes[place], place))


def _size(item: Any) -> int:
    if isinstance(item, Path):
        return item.stat().st_size
    return int(np.size(item)) if isinstance(item, np.ndarray) else len(item)


def _kept(inputs: Sequence[Any], path: Path) -> list[str] | str:
    """Texts and file names as they are, encoded bytes each in a file, arrays all in one."""
    if isinstance(inputs[0], Mapping):
        arrays = {name: np.stack([item[name] for item in inputs]) for name in inputs[0]}
    elif isinstance(inputs[0], (str, Path, bytes)):
        return [_named(item, path.with_suffix(f".{index}")) for index, item in enumerate(inputs)]
    else:
        arrays = {f"{index:04}": np.asarray(item) for index, item in enumerate(inputs)}
    np.savez(path, allow_pickle=False, **arrays)
    return str(path)


def _named(item: str | Path | bytes, path: Path) -> str:
    if isinstance(item, bytes):
        path.write_bytes(item)
        return str(path)
    return item if isinstance(item, str) else str(item.resolve())
