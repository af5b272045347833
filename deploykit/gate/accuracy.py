"""Do the candidate's vectors still mean what the baseline's did? Direction and labelled tasks by drift, and length."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from deploykit.budget import Budget, Limit
from deploykit.data import Dataset
from deploykit.drift import Drift, Verdict, compare, verdict
from deploykit.drift.intervals import lower_rank, of_mean
from deploykit.drift.judging import TERMS
from deploykit.errors import CheckError
from deploykit.gate.result import Row
from deploykit.gate.sides import Side, unusable, weights

# Lengths of normalized vectors are 1 up to the rounding of fp16 and bf16; those of others move with int8 by 1 or 2 %.
_UNIT, _FREE = 0.005, 0.05
_FAR = 0.05
# An encoder that is this little further from fp32 is no worse for any use that is known.
_LEAST_DRIFT = 0.0005
_LOOK_AT_LOWERING = (
    "the same model was lowered less well: compare the calibration data (its lengths, padding that counts as text) and "
    "the precision's options in both manifests"
)


def accuracy_rows(
    budget: Budget, spelled: frozenset[str], found: Dataset, sides: tuple[Side, Side], files: tuple[Path, Path]
) -> list[Row]:
    """Rows for the vectors in ``files``; candidate first in both pairs. What is not finite fails, and is a
    `BundleError` in the baseline.

    A limit on p1 that is not among the ``spelled`` ones is left out where there are too few inputs for it, one on task
    where the data has nothing to judge it by.
    """
    candidate, baseline = sides
    ours, theirs = (np.load(path, allow_pickle=False) for path in files)
    finite = np.isfinite(theirs).all(axis=1)
    if not finite.all():
        place = int(np.argmin(finite))
        said = f"the vector that {baseline.label} makes of input {place} is not finite (NaN or infinity)"
        raise unusable(CheckError(said, hint="`deploykit bundle selftest` shows its state"))
    try:
        drift = compare(theirs, ours, inputs=found.inputs, labels=found.labels, pairs=found.pairs)
    except CheckError as error:
        return [failed(candidate, error)]
    rows = [norm_row(ours, theirs, candidate, baseline)]
    limits, left_out = _judged_limits(budget.absolute, spelled, len(found))
    same = np.array_equal(ours, theirs)
    if same:
        said = f"{candidate.label}: all {len(found):,} vectors are bit for bit the same."
        rows.append(Row("vectors", "PASS", "", said))
    elif limits.limits:
        rows += drift_rows(verdict(drift, limits), drift, candidate, _look(drift, candidate, baseline))
        if "task" in spelled and drift.task is None:
            rows += [_no_task(limit.text, found, drift, candidate) for limit in limits.only(["task"]).limits]
    if left_out and not same:
        sentence = f"{candidate.label}: {left_out} takes {_fewest():,} inputs to judge, and there are {len(found):,}."
        rows.append(Row("p1", "NOT MEASURED", left_out, sentence, "give more with --data"))
    return rows


def further_row(limit: Limit, candidate: Side, files: tuple[Path, Path, Path]) -> Row | None:
    """Is the candidate further from the fp32 model than the baseline is? ``files``: the vectors of the candidate, of
    the baseline and of fp32, which is the same for both. None where the two have the same vectors, or no direction.

    Two quantizations of one encoder each err in their own way, so what lies between them does not say which of them
    is the worse. The difference of 1 - cosine is paired by input; its one-sided 99 % bounds decide.
    """
    ours, theirs, fp32 = (_directions(path) for path in files)
    if ours is None or theirs is None or fp32 is None or np.array_equal(ours, theirs):
        return None
    after, before = 1 - (ours * fp32).sum(axis=1), 1 - (theirs * fp32).sum(axis=1)
    change = of_mean("drift", after - before)
    own = max(float(before.mean()), 0.0)
    allowed = max(limit.value * own, _LEAST_DRIFT) if limit.value >= 0 else limit.value * own
    status: Literal["PASS", "FAIL", "INCONCLUSIVE"] = "INCONCLUSIVE"
    if change.upper99 is not None and change.upper99 <= allowed:
        status = "PASS"
    elif change.lower99 is not None and change.lower99 > allowed:
        status = "FAIL"
    elif change.lower99 is None and abs(change.value) <= _LEAST_DRIFT:
        return None  # too few inputs for an interval, and nothing to be seen
    said = f"{after.mean():.5f} from the fp32 model where the baseline is {own:.5f} ({change.value:+.5f}"
    sure = "too few inputs to tell" if change.low is None else f"95 % interval {change.low:+.5f} to {change.high:+.5f}"
    outside = {"PASS": "inside", "FAIL": "outside", "INCONCLUSIVE": "not surely inside"}[status]
    sentence = f"{candidate.label}: its mean drift is {said}, {sure}, n {change.n:,}), {outside} {limit.text}."
    look = "" if status == "PASS" else _LOOK_AT_LOWERING
    figures = {"candidate": float(after.mean()), "baseline": own, "change": change.value, "n": change.n}
    return Row("drift to fp32", status, limit.text, sentence, look, figures)


def failed(candidate: Side, error: CheckError, name: str = "vectors") -> Row:
    """The row of vectors that are no vectors."""
    said = error.message.removeprefix(f"{candidate.label}: ")  # a child's message has it in front
    return Row(name, "FAIL", "finite", f"{candidate.label}: {said}.", error.hint)


def _no_task(limit: str, found: Dataset, drift: Drift, candidate: Side) -> Row:
    """The row of a limit on the task that somebody asked for, and that nothing can be held against."""
    given = found.labels is not None or found.pairs is not None
    why = "; ".join(drift.notes) if given and drift.notes else f"{found.name} has neither labels nor scored pairs"
    sentence = f"{candidate.label}: the task was not measured, so {limit} cannot be judged: {why}."
    return Row("task", "INCONCLUSIVE", limit, sentence, "give --data with labels or scored pairs")


def _judged_limits(budget: Budget, spelled: frozenset[str], count: int) -> tuple[Budget, str]:
    """The limits to judge, and the text of the one that is left out."""
    limits = budget.only(TERMS)
    p1 = budget.only(["p1"]).limits
    if p1 and "p1" not in spelled and count < _fewest():
        return limits.only(["drift", "task"]), p1[0].text
    return limits, ""


def _fewest() -> int:
    """So many inputs a 99 % bound on a 1st percentile takes."""
    return next(n for n in range(100, 10_000) if lower_rank(n, 0.01, 0.01) >= 1)


def drift_rows(judged: Verdict, drift: Drift, candidate: Side, look: str) -> list[Row]:
    """A row for each term that was measured; ``look`` says where to look if it does not pass."""
    rows = []
    for term in judged.terms:
        if term.status == "NOT MEASURED":
            continue
        figures = {"measured": term.measured, "bound99": term.bound, "n": drift.n}
        found = "" if term.status == "PASS" else look
        rows.append(Row(term.term, term.status, term.limit, f"{candidate.label}: {term.sentence}", found, figures))
    return rows


def norm_row(ours: np.ndarray, theirs: np.ndarray, candidate: Side, baseline: Side) -> Row:
    """The lengths of vectors, which a cosine does not see: an index by inner product does."""
    after, before = (np.linalg.norm(rows.astype(np.float64), axis=1) for rows in (ours, theirs))
    some = before > 0
    moved = np.zeros(len(before))
    with np.errstate(divide="ignore"):  # a vector that became zero has moved without end
        moved[some] = np.abs(np.log(after[some] / before[some]))
    unit = bool(some.any() and np.all(np.abs(before[some] - 1) < _UNIT))
    # All that were of length 1 stay so. Other lengths scatter with int8, and only their middle tells of a scale.
    change = float(moved.max() if unit else np.median(moved[some]) if some.any() else 0.0)
    allowed = _UNIT if unit else _FREE
    ok = change <= allowed
    worst = int(np.argmax(moved))
    lengths = f"{np.median(after):.4g} against {np.median(before):.4g} (medians over {len(after):,} inputs)"
    limit = f"{'every length' if unit else 'lengths'} within {100 * allowed:g} %"
    figures = {"candidate": float(np.median(after)), "baseline": float(np.median(before)), "n": len(after)}
    if ok:
        return Row("length", "PASS", limit, f"{candidate.label}: vectors are {lengths} long.", figures=figures)
    figures |= {"worst_input": worst, "worst_candidate": float(after[worst]), "worst_baseline": float(before[worst])}
    many = unit and np.median(moved[some]) > allowed
    what = "normalisation was dropped: " if many else ""
    if unit and not many:
        over = int((moved > allowed).sum())
        lengths += f", and {over:,} of other lengths (input {worst}: {after[worst]:.4g} against {before[worst]:.4g})"
    sentence = f"{candidate.label}: {what}vectors are {lengths} long; cosines do not see it, inner products do."
    look = "look at the end of the graph: the last operations should divide by the length" if unit else "look at scales"
    differs = _cards(candidate, baseline)
    return Row("length", "FAIL", limit, sentence, f"{look}{'; ' + differs if differs else ''}", figures)


def _look(drift: Drift, candidate: Side, baseline: Side) -> str:
    """What differs between the two bundles, else what a drift of this size mostly is, and the input that shows it."""
    parts = [_cards(candidate, baseline)]
    figure = drift.figure("drift")
    if figure and figure.value > _FAR:
        parts.append(
            "a drift this large is mostly another pooling, tokenizer or prompt, or ranges calibrated on padding"
        )
    if weights(candidate) != weights(baseline):
        parts.append("the fp32 models differ: --retrained judges one that was trained again by its task")
    if drift.worst:
        worst = drift.worst[0]
        parts.append(f"worst input {worst.index} (cosine {worst.cosine:.4f}): {worst.input!r}")
    parts.append("`deploykit drift` with --where says in which layer it enters")
    return "; ".join(part for part in parts if part)


def _cards(candidate: Side, baseline: Side) -> str:
    """Where the two cards say different things about how a vector is made."""
    ours, theirs = candidate.bundle.manifest, baseline.bundle.manifest
    told = [
        f"{name} is {_plain(getattr(ours.card.embedding, name))}, was {_plain(getattr(theirs.card.embedding, name))}"
        for name in ("pooling", "normalized")
        if getattr(ours.card.embedding, name) != getattr(theirs.card.embedding, name)
    ]
    keys = sorted({*ours.card.preprocess, *theirs.card.preprocess})
    changed = [key for key in keys if ours.card.preprocess.get(key) != theirs.card.preprocess.get(key)]
    changed += [
        name
        for name in sorted({*ours.files} & {*theirs.files})
        if name.startswith("preprocess/") and ours.files[name].sha256 != theirs.files[name].sha256
    ]
    if changed:
        told.append(f"preprocessing differs in {', '.join(changed)}")
    return "; ".join(told)


def _directions(path: Path) -> np.ndarray | None:
    """Unit vectors float64 [n, dim]; None where one has no direction, which other rows say."""
    rows = np.load(path, allow_pickle=False).astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return None if not np.isfinite(rows).all() or (lengths == 0).any() else rows / lengths


def _plain(value: Any) -> str:
    return {True: "on", False: "off"}.get(value, str(value)) if isinstance(value, bool) else str(value)
