"""What a labelled task loses: kNN accuracy, a linear probe, and the rank correlation of scored pairs.

Every figure is the change from reference to candidate in points of 100, paired by example.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from deploykit.drift.intervals import DRAWS, SEED, Figure, of_accuracies, of_draws
from deploykit.drift.metrics import Neighbours, cosine
from deploykit.errors import InputError

Pair = tuple[int, int, float]

# The probe's ridge, in variances of a standardised feature. SST-2 with all-MiniLM-L6-v2, accuracy at a ridge of 0.1, 1
# and 3: 74.8, 79.0, 79.1 from 872 examples; 82.0, 82.5, 82.0 from 8,000. Of the 872 a tuned logistic regression gets
# 79.2 right.
_RIDGE = 1.0


def classes_of(labels: Sequence[Any], n: int) -> np.ndarray:
    """Labels as class numbers, int [n]; `InputError` when they are not as many as the inputs, or one is missing."""
    if len(labels) != n:
        raise InputError(f"there are {len(labels):,} labels for {n:,} inputs", hint="give one label for each input")
    names = [str(label) for label in labels]
    for index, label in enumerate(labels):
        if label is None or label != label:
            raise InputError(f"input {index} has no label", hint="fill it in, or leave the labels out")
    return np.asarray(np.unique(np.asarray(names), return_inverse=True)[1])


def label_figures(reference: np.ndarray, candidate: np.ndarray, classes: np.ndarray, found: Neighbours) -> list[Figure]:
    """knn_accuracy (the ten nearest vote, leave one out, each space by itself), probe_frozen (fitted on the reference,
    tested on both) and probe_refitted (fitted on each).
    """
    truth = classes[found.queries]
    before = _vote(classes[found.reference]) == truth
    after = _vote(classes[found.candidate]) == truth
    frozen_before, frozen_after, refitted = _probes(reference, candidate, classes)
    return [
        of_accuracies("knn_accuracy", before, after),
        of_accuracies("probe_frozen", frozen_before, frozen_after),
        of_accuracies("probe_refitted", frozen_before, refitted),
    ]


def refitted_figure(reference: np.ndarray, candidate: np.ndarray, classes: np.ndarray) -> Figure:
    """probe_refitted alone: a probe fitted on each, so that the two may be of different encoders and dimensions."""
    before, after = (_right(vectors, classes) for vectors in (reference, candidate))
    return of_accuracies("probe_refitted", before, after)


def pair_figure(reference: np.ndarray, candidate: np.ndarray, pairs: Sequence[Pair]) -> Figure:
    """spearman: rank correlation of each space's cosines with the scores, times 100; bootstrapped over the pairs."""
    first = np.array([pair[0] for pair in pairs])
    second = np.array([pair[1] for pair in pairs])
    scores = np.array([pair[2] for pair in pairs], np.float64)
    _check_pairs(first, second, scores, len(reference))
    ranked = [_Ranked(cosine(vectors[first], vectors[second])) for vectors in (reference, candidate)]
    ranked_scores = _Ranked(scores)

    def both(weights: np.ndarray) -> tuple[float, float]:
        before, after = (100 * _correlation(r, ranked_scores, weights) for r in ranked)
        return before, after

    before, after = both(np.ones(len(pairs)))
    rng = np.random.default_rng(SEED)
    draws = []
    for _ in range(DRAWS):
        weights = np.bincount(rng.integers(0, len(pairs), len(pairs)), minlength=len(pairs))
        drawn_before, drawn_after = both(weights.astype(np.float64))
        draws.append(drawn_after - drawn_before)
    return of_draws("spearman", after - before, len(pairs), np.array(draws), (before, after))


class _Ranked:
    """Values by rank, ties together, so that a resample is ranked from its weights without sorting again."""

    def __init__(self, values: np.ndarray) -> None:
        distinct, self._place = np.unique(values, return_inverse=True)
        self._count = len(distinct)

    def ranks(self, weights: np.ndarray) -> np.ndarray:
        """Mean ranks of the sample in which value i stands ``weights[i]`` times."""
        per_place = np.bincount(self._place, weights, self._count)
        return np.asarray((np.cumsum(per_place) - per_place / 2 + 0.5)[self._place])


def _correlation(first: _Ranked, second: _Ranked, weights: np.ndarray) -> float:
    """Spearman's: Pearson's of the ranks; 0 where one side does not vary."""
    total = weights.sum()
    a, b = first.ranks(weights), second.ranks(weights)
    a, b = a - (weights @ a) / total, b - (weights @ b) / total
    scale = np.sqrt((weights @ (a * a)) * (weights @ (b * b)))
    return float((weights @ (a * b)) / scale) if scale > 0 else 0.0


def _check_pairs(first: np.ndarray, second: np.ndarray, scores: np.ndarray, n: int) -> None:
    if not len(first):
        raise InputError("there are no scored pairs", hint="give at least one, or leave them out")
    if min(first.min(), second.min()) < 0 or max(first.max(), second.max()) >= n:
        raise InputError(f"a scored pair names an input outside 0 to {n - 1}", hint="pairs hold places of inputs")
    if not np.isfinite(scores).all():
        raise InputError(f"pair {int(np.argmin(np.isfinite(scores)))} has no score", hint="fill it in")


def _vote(labels: np.ndarray) -> np.ndarray:
    """The commonest class of each row [queries, 10]; of equally common ones, the one that is nearer on the whole: with
    the smallest sum of ranks.
    """
    ranks = 1 + 1e-3 * np.arange(labels.shape[1], 0, -1)
    votes = np.zeros((len(labels), int(labels.max()) + 1))
    np.add.at(votes, (np.arange(len(labels))[:, None], labels), ranks)
    return np.asarray(votes.argmax(axis=1))


def _probes(
    reference: np.ndarray, candidate: np.ndarray, classes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Right or wrong [n] for the reference, for the candidate under the reference's probe, and under its own.

    Two halves of equal class shares are drawn with a fixed seed; each is tested with the probe of the other, so that
    every example is tested once.
    """
    half = _halves(classes)
    results = [np.zeros(len(classes), bool) for _ in range(3)]
    for tested in (0, 1):
        train, test = half != tested, half == tested
        frozen = _fit(reference[train], classes[train], int(classes.max()) + 1)
        own = _fit(candidate[train], classes[train], int(classes.max()) + 1)
        tests = ((frozen, reference), (frozen, candidate), (own, candidate))
        for result, ((weights, offset), vectors) in zip(results, tests, strict=True):
            result[test] = (vectors[test] @ weights + offset).argmax(axis=1) == classes[test]
    return results[0], results[1], results[2]


def _right(vectors: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Right or wrong [n] under the vectors' own probes, each half tested with that of the other."""
    half, found = _halves(classes), np.zeros(len(classes), bool)
    for tested in (0, 1):
        train, test = half != tested, half == tested
        weights, offset = _fit(vectors[train], classes[train], int(classes.max()) + 1)
        found[test] = (vectors[test] @ weights + offset).argmax(axis=1) == classes[test]
    return found


def _halves(classes: np.ndarray) -> np.ndarray:
    """0 or 1 for each example: within each class, every other one of a seeded order."""
    order = np.random.default_rng(SEED).permutation(len(classes))
    sorted_order = order[np.argsort(classes[order], kind="stable")]
    half = np.empty(len(classes), np.int64)
    half[sorted_order] = np.arange(len(classes)) % 2
    return half


def _fit(vectors: np.ndarray, classes: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Regularised least squares on one-hot targets, in closed form: weights [d, classes] and offset [classes].

    Features are standardised over the training half; the scaling is folded into what is returned. Least squares ranks
    classes as a discriminant analysis does (Hastie, Tibshirani & Friedman, section 4.2), with nothing to iterate, so
    that a change of accuracy is the vectors' and not an optimiser's.
    """
    data = vectors.astype(np.float64)
    mean, spread = data.mean(axis=0), data.std(axis=0)
    spread[spread == 0] = 1
    data = (data - mean) / spread
    targets = np.eye(count)[classes]
    level = targets.mean(axis=0)
    gram = data.T @ data / len(data)
    gram[np.diag_indices_from(gram)] += _RIDGE
    weights = np.linalg.solve(gram, data.T @ (targets - level) / len(data)) / spread[:, None]
    return weights.astype(np.float32), (level - mean @ weights).astype(np.float32)
