"""What the vectors alone tell: cosine to the reference, SQNR, and whether neighbours stay neighbours.

Everything takes ``reference`` and ``candidate``, float32 [n, d], row i of both from input i, and returns a `Figure`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from deploykit.drift.intervals import FEWEST, SEED, Figure, of_mean, of_percentile
from deploykit.errors import CheckError, InputError
from deploykit.runtime.selftest import cosines

NEIGHBOURS = 10
#: More queries than this are not asked: a seeded sample of them is, against all vectors.
MOST_QUERIES = 5000
# Similarities held at once: 64 MB of float32.
_BLOCK = 1 << 24


@dataclass(frozen=True)
class Neighbours:
    """The `NEIGHBOURS` nearest rows of each query row, without itself, nearest first; int [queries, 10] each.

    ``reference`` and ``candidate`` are within each space; ``cross`` are a candidate query's in the reference's.
    """

    queries: np.ndarray
    reference: np.ndarray
    candidate: np.ndarray
    cross: np.ndarray


def check(reference: np.ndarray, candidate: np.ndarray) -> None:
    """`InputError` when the two cannot be compared, `CheckError` naming the first vector that is not finite."""
    for name, vectors in (("reference", reference), ("candidate", candidate)):
        if vectors.ndim != 2 or not vectors.size or vectors.dtype.kind != "f":
            raise InputError(
                f"the {name}'s vectors are {vectors.dtype} {list(vectors.shape)}",
                hint="give floating-point vectors [n, dim], at least one",
            )
    if reference.shape[1] != candidate.shape[1]:
        raise InputError(
            f"the reference's vectors have {reference.shape[1]} dimensions, the candidate's {candidate.shape[1]}",
            hint="drift compares two forms of one encoder: give vectors of the same encoder",
        )
    if len(reference) != len(candidate):
        raise InputError(
            f"there are {len(reference):,} reference vectors and {len(candidate):,} candidate vectors",
            hint="encode the same inputs, in the same order, with both",
        )
    for name, vectors in (("reference", reference), ("candidate", candidate)):
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            first, count = int(np.argmin(finite)), int((~finite).sum())
            more = f", and {count - 1:,} more" if count > 1 else ""
            raise CheckError(
                f"the {name}'s vector of input {first} is not finite (NaN or infinity){more}",
                hint="run `deploykit bundle selftest` on it; do not use it",
            )


def cosine(reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """The cosine of each pair of rows, float64 [n], at most 1; 1 where both are zero, 0 where one is."""
    # What the sums' own rounding leaves of equal vectors (1e-16) is no drift.
    return np.minimum(np.round(cosines(reference, candidate), 14), 1.0)


def cosine_figures(cosine: np.ndarray) -> list[Figure]:
    """drift (1 - mean), cosine_mean, cosine_p1 and cosine_min; the smallest has no interval."""
    return [
        of_mean("drift", 1 - cosine),
        of_mean("cosine_mean", cosine),
        of_percentile("cosine_p1", cosine, 0.01),
        Figure("cosine_min", float(cosine.min()), len(cosine)),
    ]


def sqnr(reference: np.ndarray, candidate: np.ndarray, name: str = "sqnr_db") -> Figure:
    """10 log10 of the reference's power over that of the difference, in dB; infinite where they are equal.

    The interval is the delta method's for the logarithm of a ratio of means over examples.
    """
    signal = np.einsum("ij,ij->i", reference, reference, dtype=np.float64)
    difference = reference.astype(np.float64) - candidate
    noise = np.einsum("ij,ij->i", difference, difference)
    n = len(signal)
    if not noise.any():
        return Figure(name, math.inf, n)
    if not signal.any():
        return Figure(name, -math.inf, n)
    value = 10 * math.log10(float(signal.mean()) / float(noise.mean()))
    if n < FEWEST:
        return Figure(name, value, n)
    relative = signal / signal.mean() - noise / noise.mean()
    error = 10 / math.log(10) * float(relative.std(ddof=1)) / math.sqrt(n)
    wide, sure = (error * NormalDist().inv_cdf(tail) for tail in (0.975, 0.99))
    return Figure(name, value, n, value - wide, value + wide, value - sure, value + sure, "delta method")


def neighbours(reference: np.ndarray, candidate: np.ndarray) -> Neighbours:
    """The nearest rows by cosine, n at least `FEWEST`; of more than `MOST_QUERIES` rows a seeded sample asks."""
    n = len(reference)
    queries = np.arange(n)
    if n > MOST_QUERIES:
        queries = np.sort(np.random.default_rng(SEED).choice(n, MOST_QUERIES, replace=False))
    before, after = _unit(reference), _unit(candidate)
    return Neighbours(
        queries, _nearest(before, before, queries), _nearest(after, after, queries), _nearest(after, before, queries)
    )


def overlap_figures(found: Neighbours) -> list[Figure]:
    """Shares, in [0, 1], of the ten nearest that stay: each space asked in itself, and the candidate's vectors asked
    against the reference's, as against an index that was built before.
    """
    return [
        of_mean("knn_overlap_10", _shared(found.reference, found.candidate)),
        of_mean("cross_overlap_10", _shared(found.reference, found.cross)),
    ]


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norms == 0, 1, norms), np.float32)


def _nearest(asking: np.ndarray, index: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """A block of queries at a time, so that memory does not grow with their number."""
    step = max(1, _BLOCK // len(index))
    blocks = []
    for start in range(0, len(queries), step):
        rows = queries[start : start + step]
        similar = asking[rows] @ index.T
        similar[np.arange(len(rows)), rows] = -np.inf
        best = np.argpartition(similar, -NEIGHBOURS, axis=1)[:, -NEIGHBOURS:]
        order = np.argsort(-np.take_along_axis(similar, best, axis=1), axis=1, kind="stable")
        blocks.append(np.take_along_axis(best, order, axis=1))
    return np.concatenate(blocks)


def _shared(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """How much of each row's set the other row has, [queries]."""
    return np.asarray((first[:, :, None] == second[:, None, :]).any(axis=2).mean(axis=1))
