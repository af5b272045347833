"""Candidate against reference, vector by vector: every figure, the worst inputs, and what an input's size does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.drift import metrics, tasks
from deploykit.drift.intervals import FEWEST, Figure
from deploykit.drift.tasks import Pair
from deploykit.errors import InputError

Size = int | tuple[int, int]

_WORST = 10
_SHOWN_CHARACTERS = 80
# So many different sizes are shown one by one, more of them in buckets.
_FEW_SIZES = 8
# A size needs this many inputs to be called out alone.
_ENOUGH_OF_A_SIZE = 3
# It stands out when its drift is so many times that of all, and no mere rounding.
_ODD, _ODD_FROM = 2, 1e-4


@dataclass(frozen=True)
class WorstInput:
    """One of the inputs that moved most: its place, its cosine, and the input itself (a text cut short, a file)."""

    index: int
    cosine: float
    input: str


@dataclass(frozen=True)
class Bucket:
    """Inputs of like size (tokens, samples, or height x width) and their cosine to the reference."""

    size: str
    n: int
    mean: float
    min: float


@dataclass(frozen=True)
class Drift:
    """What was measured. ``worst`` are the ten inputs of lowest cosine; ``odd_size`` is a single size, hidden in its
    bucket, whose drift is over twice that of all; ``notes`` say what was not measured and why.
    """

    n: int
    dim: int
    figures: tuple[Figure, ...]
    worst: tuple[WorstInput, ...]
    buckets: tuple[Bucket, ...] = ()
    odd_size: Bucket | None = None
    notes: tuple[str, ...] = ()

    def figure(self, name: str) -> Figure | None:
        """The figure of that name, where it was measured."""
        return next((figure for figure in self.figures if figure.name == name), None)

    @property
    def task(self) -> Figure | None:
        """The figure that the budget's ``task`` means: the scored pairs' Spearman, else the frozen probe's accuracy.

        The frozen probe asks what a deployed classifier would: it is not fitted again when the encoder changes. Without
        it (`compare_tasks`) the probes are fitted on each side.
        """
        return self.figure("spearman") or self.figure("probe_frozen") or self.figure("probe_refitted")

    @property
    def terms(self) -> Mapping[str, float]:
        """The budget's terms as measured: drift, p1 and, where there is a labelled task, task (points lost)."""
        found = {"drift": self.figure("drift"), "p1": self.figure("cosine_p1")}
        terms = {term: figure.value for term, figure in found.items() if figure}
        return terms | ({"task": -self.task.value} if self.task else {})

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "n": self.n,
            "dim": self.dim,
            "figures": {figure.name: figure.to_json() for figure in self.figures},
            "terms": dict(self.terms),
            "worst": [asdict(worst) for worst in self.worst],
            "buckets": [asdict(bucket) for bucket in self.buckets],
            "odd_size": asdict(self.odd_size) if self.odd_size else None,
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Drift:
        """Read what `to_json` wrote."""
        odd = data["odd_size"]
        return cls(
            n=data["n"],
            dim=data["dim"],
            figures=tuple(Figure(**figure) for figure in data["figures"].values()),
            worst=tuple(WorstInput(**worst) for worst in data["worst"]),
            buckets=tuple(Bucket(**bucket) for bucket in data["buckets"]),
            odd_size=Bucket(**odd) if odd else None,
            notes=tuple(data["notes"]),
        )


def compare(
    reference: np.ndarray,
    candidate: np.ndarray,
    *,
    inputs: Sequence[Any] | None = None,
    labels: Sequence[Any] | None = None,
    pairs: Sequence[Pair] | None = None,
    sizes: Sequence[Size] | None = None,
) -> Drift:
    """Compare vectors float32 [n, d], row i of both from input i.

    ``inputs`` name the worst ones; ``labels`` are n class labels; ``pairs`` are (place, place, score); ``sizes`` are n
    lengths, or n (height, width). `InputError` when they do not fit together, `CheckError` for NaN in a vector.
    """
    metrics.check(reference, candidate)
    n = len(reference)
    for name, given in (("inputs", inputs), ("sizes", sizes)):
        if given is not None and len(given) != n:
            raise InputError(f"there are {len(given):,} {name} for {n:,} vectors", hint="give one for each vector")
    cosine = metrics.cosine(reference, candidate)
    figures = [*metrics.cosine_figures(cosine), metrics.sqnr(reference, candidate)]
    notes = _zeros(reference, candidate)
    classes = None if labels is None else _usable(tasks.classes_of(labels, n), notes)
    if n < FEWEST:
        notes.append(f"{n} inputs are too few for intervals and neighbours: give {FEWEST} or more")
    else:
        found = metrics.neighbours(reference, candidate)
        figures += metrics.overlap_figures(found)
        figures += tasks.label_figures(reference, candidate, classes, found) if classes is not None else []
    if pairs is not None:
        figures.append(tasks.pair_figure(reference, candidate, pairs))
    order = np.argsort(cosine, kind="stable")[:_WORST]
    worst = tuple(WorstInput(int(i), float(cosine[i]), _shown(inputs[i]) if inputs else "") for i in order)
    buckets, odd = _by_size(sizes, cosine) if sizes else ((), None)
    return Drift(n, reference.shape[1], tuple(figures), worst, buckets, odd, tuple(notes))


def compare_tasks(
    reference: np.ndarray,
    candidate: np.ndarray,
    *,
    labels: Sequence[Any] | None = None,
    pairs: Sequence[Pair] | None = None,
) -> Drift:
    """The labelled task alone, each space by itself: vectors [n, d] and [n, e] of two encoders of the same inputs."""
    n, notes = len(reference), list[str]()
    classes = None if labels is None else _usable(tasks.classes_of(labels, n), notes)
    if classes is not None and n < FEWEST:
        notes.append(f"{n} inputs are too few to fit probes on: give {FEWEST} or more")
        classes = None
    figures = [] if classes is None else [tasks.refitted_figure(reference, candidate, classes)]
    if pairs is not None:
        figures.append(tasks.pair_figure(reference, candidate, pairs))
    return Drift(n, reference.shape[1], tuple(figures), (), notes=tuple(notes))


def _zeros(reference: np.ndarray, candidate: np.ndarray) -> list[str]:
    notes = []
    for name, vectors, other in (("reference", reference, candidate), ("candidate", candidate, reference)):
        zero = ~vectors.any(axis=1)
        count = int(zero.sum())
        if count:
            alone = int((zero & other.any(axis=1)).sum())
            told = f"; where only one is zero ({alone:,}) its cosine counts as 0" if alone else ", as are the others'"
            first = int(np.argmax(zero))
            notes.append(f"{count:,} of the {name}'s vectors are zero, the first that of input {first}{told}")
    return notes


def _usable(classes: np.ndarray, notes: list[str]) -> np.ndarray | None:
    """The classes, unless nothing could be learned from them; then None and a note."""
    count = int(classes.max()) + 1
    if count < 2:
        notes.append("all labels are the same, so no accuracy was measured")
    elif count > len(classes) / 2:
        notes.append(
            f"{count:,} different labels for {len(classes):,} inputs are no classes, so no accuracy was measured"
        )
    else:
        return classes
    return None


def _shown(value: Any) -> str:
    """An input on one line: a text cut short, a file's name, the shape of an array."""
    if isinstance(value, str):
        text = " ".join(value.split())
        return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1].rstrip() + "…"
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    return str(value)


def _by_size(sizes: Sequence[Size], cosine: np.ndarray) -> tuple[tuple[Bucket, ...], Bucket | None]:
    """Buckets in order of size, and the worst single size where buckets hold several and it stands out."""
    single = sorted(set(sizes), key=_edge)
    alone = {size: np.array([s == size for s in sizes]) for size in single} if len(single) <= 4096 else {}
    if len(single) <= _FEW_SIZES:
        return tuple(_bucket(_size_text(size), cosine[alone[size]]) for size in single), None
    steps = np.array([max(4, math.ceil(math.log2(max(1.0, _edge(size))) - 1e-9)) for size in sizes])
    square = isinstance(sizes[0], tuple)
    buckets = []
    for step in np.unique(steps):
        low, high = (1 if step == steps.min() else 2 ** (step - 1) + 1), 2**step
        name = f"sides of {low} to {high}" if square else f"{low} to {high}"
        buckets.append(_bucket(name, cosine[steps == step]))
    odd = [_bucket(_size_text(s), cosine[m]) for s, m in alone.items() if m.sum() >= _ENOUGH_OF_A_SIZE]
    worst = min(odd, key=lambda bucket: bucket.mean, default=None)
    stands_out = worst is not None and 1 - worst.mean > max(_ODD * (1 - float(cosine.mean())), _ODD_FROM)
    return tuple(buckets), worst if stands_out else None


def _bucket(size: str, cosine: np.ndarray) -> Bucket:
    return Bucket(size, len(cosine), float(cosine.mean()), float(cosine.min()))


def _edge(size: Size) -> float:
    """A length, or the side of a square of the same area."""
    return math.sqrt(size[0] * size[1]) if isinstance(size, tuple) else float(size)


def _size_text(size: Size) -> str:
    return f"{size[0]} x {size[1]}" if isinstance(size, tuple) else str(size)
