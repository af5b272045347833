"""Data of a run, in memory: read, split into what is trained on and what is held out, unreadable inputs counted.

Importing this module imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deploykit import data
from deploykit.data import digests
from deploykit.errors import InputError
from deploykit.pretrain.recipe import DataSection
from deploykit.runtime.preprocess.parallel import map_threads


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


def read(specs: Sequence[str], modality: str, limit: int) -> Read:
    """Inputs of one modality; labels where every spec has some."""
    inputs: list[Any] = []
    labels: list[Any] = []
    pairs: list[tuple[int, int, float]] = []
    labelled = True
    for spec in specs:
        found = data.read(spec)
        if found.modality != modality:
            raise InputError(f"'{spec}' holds {found.modality} data", hint=f"the recipe's modality is {modality}")
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


def hold(adapter: Any, given: Read, options: DataSection, classes: Sequence[str] = ()) -> Held:
    """Bring inputs into memory; `InputError` when more than ``options.unreadable`` of them cannot be read."""

    def one(item: Any, index: int) -> tuple[np.ndarray, ...] | InputError:
        try:
            arrays: tuple[np.ndarray, ...] = adapter.read(item)
            return arrays
        except InputError as error:
            return error

    results = map_threads(one, given.inputs)
    skipped = [str(r).splitlines()[0] for r in results if isinstance(r, InputError)]
    if len(skipped) > options.unreadable * len(results):
        raise InputError(
            f"{len(skipped)} of {len(results)} inputs cannot be read; the first: {skipped[0]}",
            hint="repair or remove them, or raise data.unreadable",
        )
    places = [i for i, r in enumerate(results) if not isinstance(r, InputError)]
    kept = [r for r in results if not isinstance(r, InputError)]
    tensors = tuple(torch.from_numpy(np.stack(column)) for column in zip(*kept, strict=True))
    labels, names = _labels(given.labels, places, classes)
    new = {place: i for i, place in enumerate(places)}
    pairs = tuple((new[a], new[b], s) for a, b, s in given.pairs if a in new and b in new)
    return Held(tensors, labels, names, pairs, tuple(skipped))


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


def split(count: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Places to train on and places held out, both in ascending order."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    held_out = max(1, round(share * count))
    return order[held_out:].sort().values, order[:held_out].sort().values
