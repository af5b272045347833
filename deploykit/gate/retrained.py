"""A candidate that was trained again: other weights on purpose, so that its vectors are not the baseline's.

What is left to ask is what a user of them asks: is the task done as well? Each side answers in its own space, labels by
a linear probe fitted to it, scored pairs by its own cosines. Drift would only say that the weights differ.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deploykit.budget import Budget
from deploykit.data import Dataset
from deploykit.drift.comparison import compare_tasks
from deploykit.drift.judging import verdict
from deploykit.errors import CheckError, InputError, RecipeError
from deploykit.gate.accuracy import drift_rows, failed, norm_row
from deploykit.gate.result import Row
from deploykit.gate.sides import Side, unusable, weights

_OF_VECTORS = ("drift", "p1")


def check(candidate: Side, baseline: Side, found: Dataset, spelled: frozenset[str]) -> None:
    """`RecipeError` for a limit on drift by name, `InputError` for equal weights or data without labels and pairs."""
    for term in _OF_VECTORS:
        if term in spelled:
            raise RecipeError(
                f"--retrained leaves {term} out, and the budget limits it",
                hint="other weights make other vectors: limit task, or leave --retrained out",
            )
    ours, theirs = weights(candidate), weights(baseline)
    if ours and ours == theirs:
        raise InputError(
            "the two have the same fp32 weights, and --retrained says that they differ",
            hint="leave --retrained out: drift and task are then held against the baseline's vectors",
        )
    if found.labels is None and found.pairs is None:
        raise InputError(
            f"--retrained judges a task, and {found.name} has neither labels nor scored pairs",
            hint="give --data with labels or scored pairs",
        )


def note(candidate: Side, baseline: Side) -> str:
    """That the weights differ, and what follows from it."""
    digests = [next(iter(sorted(weights(side).values())), "unknown")[:8] for side in (candidate, baseline)]
    said = f"the weights differ (the fp32 model is {digests[0]}, was {digests[1]})"
    dims = [side.bundle.manifest.card.embedding.dim for side in (candidate, baseline)]
    if dims[0] != dims[1]:
        said += f", and vectors have {dims[0]} dimensions, had {dims[1]}"
    return f"{said}: the task was judged, drift was not; an index of the baseline's vectors has to be built again"


def task_rows(budget: Budget, found: Dataset, sides: tuple[Side, Side], files: tuple[Path, Path]) -> list[Row]:
    """The rows of the vectors in ``files``; candidate first in both pairs."""
    candidate, baseline = sides
    ours, theirs = (np.load(path, allow_pickle=False) for path in files)
    for side, vectors in ((baseline, theirs), (candidate, ours)):
        finite = np.isfinite(vectors).all(axis=1)
        if finite.all():
            continue
        place = int(np.argmin(finite))
        error = CheckError(
            f"the vector that {side.label} makes of input {place} is not finite (NaN or infinity)",
            hint="`deploykit bundle selftest` shows its state",
        )
        if side is baseline:
            raise unusable(error)
        return [failed(candidate, error)]
    length = norm_row(ours, theirs, candidate, baseline)
    # Vectors that were never normalized have the lengths that training gave them.
    rows = [length] if length.limit.startswith("every") else []
    drift = compare_tasks(theirs, ours, labels=found.labels, pairs=found.pairs)
    limits = budget.absolute.only(["task"])
    if drift.task is None:
        why = "; ".join(drift.notes)
        said = f"{candidate.label}: the task was not measured, so nothing can be judged: {why}."
        return [*rows, Row("task", "INCONCLUSIVE", str(limits), said, "give more data, with labels or scored pairs")]
    look = "look at the training: data, steps, the checkpoint that was taken"
    return rows + drift_rows(verdict(drift, limits), drift, candidate, look)
