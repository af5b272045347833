"""Data of a run, in memory or mapped into it: read, unreadable inputs counted, split into trained on and held out.

Importing this module imports torch.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deploykit import data
from deploykit.data import digests
from deploykit.errors import InputError
from deploykit.pretrain.recipe import DataSection
from deploykit.runtime.preprocess.parallel import map_threads

_CHUNK = 4096
"""Inputs that are read before they are put where they are held."""


@dataclass(frozen=True)
class Held:
    """Readable inputs as tensors with the samples as their first axis; ``skipped`` could not be read."""

    tensors: tuple[Tensor, ...]
    labels: Tensor | None
    classes: tuple[str, ...]
    pairs: tuple[tuple[int, int, float], ...]
    skipped: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.tensors[0])

    def rows(self, places: Tensor) -> Held:
        """Some of the samples, without pairs."""
        labels = None if self.labels is None else self.labels[places]
        return Held(tuple(t[places] for t in self.tensors), labels, self.classes, (), ())


@dataclass(frozen=True)
class Read:
    """The inputs that data specs name, as they are; ``digest`` tells when they change."""

    inputs: list[Any]
    labels: list[Any] | None
    pairs: tuple[tuple[int, int, float], ...]
    digest: str


def read(
    specs: Sequence[str], modality: str, limit: int, names: str = "", chosen: Callable[[str], bool] | None = None
) -> Read:
    """Inputs of one modality; labels where every spec has some.

    ``names`` is the pattern that file names are labels by, ``chosen`` decides by the name of its file which input is
    taken. `InputError` where inputs have no file that either could be asked of.
    """
    inputs: list[Any] = []
    labels: list[Any] = []
    pairs: list[tuple[int, int, float]] = []
    labelled = True
    for spec in specs:
        found = data.read(spec)
        if found.modality != modality:
            raise InputError(f"'{spec}' holds {found.modality} data", hint=f"the recipe's modality is {modality}")
        if chosen is not None:
            found = found.subset([i for i, name in enumerate(_file_names(found, spec)) if chosen(name)])
        if names and found.labels is None:
            found = replace(found, labels=labels_of(_file_names(found, spec), names))
        if limit and len(found) > limit:
            found = found.subset(np.random.default_rng(0).permutation(len(found))[:limit].tolist())
        pairs += [(a + len(inputs), b + len(inputs), score) for a, b, score in found.pairs or ()]
        inputs += list(found.inputs)
        labelled = labelled and found.labels is not None
        labels += list(found.labels or ())
    if not inputs:
        raise InputError(f"{', '.join(specs)} holds no input", hint="name data with inputs in it")
    digest = "+".join(digests.of(spec) for spec in specs)
    return Read(inputs, labels if labelled else None, tuple(pairs), digest)


def in_parts(given: Read, parts: Callable[[list[Any]], list[Any]]) -> Read:
    """What is learnt from, with long inputs in parts; `InputError` where labels or scores would not fit those."""
    cut = parts(given.inputs)
    if cut == list(given.inputs):
        return given
    if given.labels is not None or given.pairs:
        hint = "drop the labels of data.train and name labelled data: data.probe"
        raise InputError("labelled inputs cannot be cut into parts", hint=hint)
    return replace(given, inputs=cut)


def fits(patterns: Sequence[str], answer: bool = True) -> Callable[[str], bool] | None:
    """Tells whether a file's name fits one of some shell patterns (or none, with ``answer`` False); None of none."""
    return (lambda name: any(fnmatch(name, pattern) for pattern in patterns) is answer) if patterns else None


def labels_of(files: Sequence[str], pattern: str) -> list[str]:
    """What stands at ``{label}`` in the names of files; `InputError` for the first that does not fit ``pattern``."""
    parts = re.split(r"\{(\w+)\}", pattern)
    wanted = re.escape(parts[0])
    for name, text in zip(parts[1::2], parts[2::2], strict=True):
        wanted += ("(?P<label>.+?)" if name == "label" else ".+?") + re.escape(text)
    found = [(name, re.fullmatch(wanted, Path(name).stem)) for name in files]
    for name, match in found:
        if match is None:
            raise InputError(f"the file name '{name}' does not fit data.names", hint=f"it is '{pattern}'")
    return [match["label"] for _, match in found if match is not None]


def _file_names(found: data.Dataset, spec: str) -> list[str]:
    if not all(isinstance(item, Path) for item in found.inputs):
        raise InputError(f"the inputs of '{spec}' are no files", hint="leave data.names and data.test_names out")
    return [item.name for item in found.inputs]


def hold(adapter: Any, given: Read, options: DataSection, folder: Path, classes: Sequence[str] = ()) -> Held:
    """Bring inputs into memory; `InputError` when more than ``options.unreadable`` of them cannot be read.

    With ``options.memory`` "disk" into files below ``folder`` instead, which have no name any more when this returns.
    """
    columns: tuple[np.ndarray, ...] = ()
    places: list[int] = []
    skipped: list[str] = []
    for start in range(0, len(given.inputs), _CHUNK):
        for place, result in enumerate(_read_all(adapter, given.inputs[start : start + _CHUNK], start), start=start):
            if isinstance(result, InputError):
                skipped.append(str(result).splitlines()[0])
                continue
            columns = columns or tuple(_room(len(given.inputs), one, options.memory, folder) for one in result)
            for column, array in zip(columns, result, strict=True):
                column[len(places)] = array
            places.append(place)
    if len(skipped) > options.unreadable * len(given.inputs):
        raise InputError(
            f"{len(skipped)} of {len(given.inputs)} inputs cannot be read; the first: {skipped[0]}",
            hint="repair or remove them, or raise data.unreadable",
        )
    tensors = tuple(torch.from_numpy(column[: len(places)]) for column in columns)
    labels, names = _labels(given.labels, places, classes)
    new = {place: i for i, place in enumerate(places)}
    pairs = tuple((new[a], new[b], s) for a, b, s in given.pairs if a in new and b in new)
    return Held(tensors, labels, names, pairs, tuple(skipped))


def _read_all(adapter: Any, items: Sequence[Any], first: int) -> list[tuple[np.ndarray, ...] | InputError]:
    """What is read of some items, of which the first is at the place ``first`` of all."""

    def one(item: Any, index: int) -> tuple[np.ndarray, ...] | InputError:
        try:
            arrays: tuple[np.ndarray, ...] = adapter.read(item, first + index)
            return arrays
        except InputError as error:
            return error

    return map_threads(one, items)


def _room(count: int, like: np.ndarray, memory: str, folder: Path) -> np.ndarray:
    """Space for ``count`` arrays of one kind."""
    shape = (count, *like.shape)
    if memory == "ram":
        return np.empty(shape, like.dtype)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:  # the mapping keeps it alive; a killed process leaves nothing
        return np.memmap(file, like.dtype, "w+", shape=shape)


def _labels(
    labels: Sequence[Any] | None, places: Sequence[int], classes: Sequence[str]
) -> tuple[Tensor | None, tuple[str, ...]]:
    """Labels as numbers, in the order of their names; an unknown class is an error, not a wrong number."""
    if labels is None:
        return None, ()
    named = [str(labels[place]) for place in places]
    names = tuple(classes) or tuple(sorted(set(named)))
    strange = sorted(set(named) - set(names))
    if strange:
        raise InputError(f"the class '{strange[0]}' is not in the probe's data", hint="judge on the same classes")
    if len(names) < 2:
        raise InputError(f"all labels are '{names[0]}'", hint="a probe needs two classes or more; drop the labels")
    number = {name: i for i, name in enumerate(names)}
    return torch.tensor([number[name] for name in named]), names


def every(held: Held) -> Tensor:
    """The places of all samples."""
    return torch.arange(len(held))


def split(count: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Places to train on and places held out, both in ascending order."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    held_out = max(1, round(share * count))
    return order[held_out:].sort().values, order[:held_out].sort().values


def some(places: Tensor, most: int, seed: int) -> Tensor:
    """At most so many of the places, drawn from all of them in ascending order: data often lie sorted by class."""
    drawn = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))[:most]
    return places[drawn.sort().values]
