"""Which of the variants that passed are handed over: those inside the budget, and of an ``auto`` the fastest one.

Pure arithmetic on what the steps measured; nothing is run here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deploykit.budget import Budget, judge

if TYPE_CHECKING:
    from deploykit.drift import Drift

REFERENCE_PRECISION = "fp32"
NOT_JUDGED = "not judged"
DRIFT_TERMS = ("drift", "p1", "task")
#: What an export measures; the other terms need a benchmark.
MEASURED = (*DRIFT_TERMS, "p50", "throughput", "size")


@dataclass(frozen=True)
class Candidate:
    """A variant that was built and passed its proof.

    ``figures`` are in the units of `deploykit.budget.TERMS`; ``low_ms`` and ``high_ms`` bound the median time.
    ``faults`` are sentences about drift that is outside the budget, ``unsure`` about drift that lies inside and that
    too few inputs leave undecided. ``asked`` False: it was built to compare with, or by ``auto``. ``ran`` False: its
    device is not here, and only its numbers were checked. ``batch_dependent``: a vector changes with its batch.
    """

    name: str
    target: str
    precision: str
    figures: Mapping[str, float]
    low_ms: float
    high_ms: float
    asked: bool
    partial: bool = False
    faults: tuple[str, ...] = ()
    unsure: tuple[str, ...] = ()
    ran: bool = True
    batch_dependent: bool = False


@dataclass(frozen=True)
class Decision:
    """What became of a candidate, in a sentence. ``refused``: it was asked for, and the budget does not allow it."""

    candidate: Candidate
    kept: bool
    reason: str
    refused: bool = False

    def row(self) -> dict[str, Any]:
        """Plain data for the manifest and the report."""
        c = self.candidate
        figures = {**c.figures, "low_ms": c.low_ms, "high_ms": c.high_ms}
        measured = {name: round(value, 6) for name, value in figures.items() if math.isfinite(value)}
        return {"variant": c.name, "kept": self.kept, "reason": self.reason, **measured}


@dataclass(frozen=True)
class Choice:
    """A decision for each candidate, and the targets for which nothing is inside the budget."""

    decisions: tuple[Decision, ...]
    empty_targets: tuple[str, ...] = field(default=())

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of the variants to hand over."""
        return tuple(decision.candidate.name for decision in self.decisions if decision.kept)


@dataclass(frozen=True)
class DriftFaults:
    """Sentences: ``outside`` on the limits that were missed, ``unsure`` on those that are kept as far as so few inputs
    can tell.
    """

    outside: tuple[str, ...] = ()
    unsure: tuple[str, ...] = ()


def drift_faults(drift: Drift, budget: Budget) -> DriftFaults:
    """Why a drift is not inside the limits that the budget sets it; nothing where it is, or where there are none.

    A limit on what the data cannot show (``task`` without labels) counts only where nothing else was measured either.
    """
    from deploykit.drift import verdict

    limited = budget.only(DRIFT_TERMS)
    if not limited.limits:
        return DriftFaults()
    judged = verdict(drift, limited)
    if judged.status == "PASS":
        return DriftFaults()
    limits = {limit.text: limit for limit in limited.limits}
    terms = [term for term in judged.terms if term.status not in ("PASS", "NOT MEASURED")]
    if not terms:
        return DriftFaults(unsure=tuple(term.sentence for term in judged.terms))
    inside = [
        term.status == "INCONCLUSIVE" and term.measured is not None and limits[term.limit].holds(term.measured)
        for term in terms
    ]
    told = list(zip(terms, inside, strict=True))
    return DriftFaults(
        tuple(term.sentence for term, holds in told if not holds), tuple(term.sentence for term, holds in told if holds)
    )


def choose(candidates: Sequence[Candidate], budget: Budget, *, auto: bool) -> Choice:
    """Decide for each target by itself. ``auto``: of those that nobody asked for by name, the fastest is kept."""
    decisions: list[Decision] = []
    empty = []
    for target in dict.fromkeys(candidate.target for candidate in candidates):
        of_target = [candidate for candidate in candidates if candidate.target == target]
        made = _of_target(of_target, budget, auto)
        decisions += made
        if not any(decision.kept for decision in made):
            empty.append(target)
    return Choice(tuple(decisions), tuple(empty))


def _of_target(candidates: Sequence[Candidate], budget: Budget, auto: bool) -> list[Decision]:
    baseline = next((c.figures for c in candidates if c.precision == REFERENCE_PRECISION), None)
    faults = {c.name: _faults(c, budget, baseline) for c in candidates}
    inside = [c for c in candidates if not faults[c.name]]
    best = _best(inside) if auto else None
    partial_inside = {c.precision for c in inside if c.partial}
    decisions = []
    for c in candidates:
        if faults[c.name]:
            # A partial variant that is inside stands in for the whole one that was asked for.
            refused = c.asked and c.precision not in partial_inside
            decisions.append(Decision(c, False, "; ".join(faults[c.name]), refused))
        elif best is not None and c.name == best.name:
            decisions.append(Decision(c, True, "; ".join(filter(None, (_why_best(c, inside), _not_judged(c))))))
        elif c.unsure and (c.asked or not auto):
            decisions.append(Decision(c, c.asked or c.partial, _not_judged(c)))
        elif c.asked:
            decisions.append(Decision(c, True, "asked for, and inside the budget" if budget.limits else "asked for"))
        elif c.partial and not auto:
            decisions.append(Decision(c, True, "inside the budget, in the place of the whole"))
        else:
            decisions.append(_of_unasked(c, best, inside, auto))
    return decisions


def _not_judged(candidate: Candidate) -> str:
    """What too few inputs left undecided; empty if nothing."""
    return f"{NOT_JUDGED}: {' '.join(candidate.unsure)}" if candidate.unsure else ""


def _of_unasked(c: Candidate, best: Candidate | None, inside: Sequence[Candidate], auto: bool) -> Decision:
    """A candidate inside the budget that ``auto`` made, or that was made to compare with; ``best`` is another."""
    if auto and not c.ran:
        return Decision(c, True, "inside the budget; not timed, as its device is not here")
    if auto and "p50" not in c.figures:
        return Decision(c, False, "inside the budget, and was not timed")
    if best is not None:
        return Decision(c, False, _why_not(c, best, inside))
    return Decision(c, False, "built to compare with")


def _faults(candidate: Candidate, budget: Budget, baseline: Mapping[str, float] | None) -> list[str]:
    """Why a candidate is not inside the budget: drift with its statistics, the rest by its figures."""
    rest = budget.only([limit.term for limit in budget.limits if limit.term not in DRIFT_TERMS])
    rows = judge(rest, candidate.figures, baseline)
    return [*candidate.faults, *(row.sentence for row in rows if row.ok is not True)]


def _best(inside: Sequence[Candidate]) -> Candidate | None:
    """The fastest; of those that the clock cannot tell apart from it, the one that drifts least.

    One whose vectors change with their batch is taken only where nothing else is inside.
    """
    inside = [c for c in inside if not c.batch_dependent] or inside
    return min(_fastest(inside), key=lambda c: (c.figures.get("drift", 0.0), c.figures["p50"]), default=None)


def _fastest(inside: Sequence[Candidate]) -> list[Candidate]:
    """Those that no other one is faster than with its whole interval; the intervals of any two of them overlap."""
    timed = [c for c in inside if "p50" in c.figures]
    return [c for c in timed if c.low_ms <= min(other.high_ms for other in timed)]


def _why_best(best: Candidate, inside: Sequence[Candidate]) -> str:
    inside = [c for c in inside if c.batch_dependent == best.batch_dependent]
    others = [c for c in inside if c is not best and "p50" in c.figures]
    if not others:
        return "the only one inside the budget"
    equal = [c for c in _fastest(inside) if c is not best]
    if equal:
        less = ", and drifts less" if all(_drifts_more(c, best) for c in equal) else ""
        return f"as fast as {', '.join(c.name for c in equal)} within the intervals{less}"
    second = min(others, key=lambda c: c.figures["p50"])
    return f"the fastest inside the budget: {second.figures['p50'] / best.figures['p50']:.2f}x as fast as {second.name}"


def _why_not(candidate: Candidate, best: Candidate, inside: Sequence[Candidate]) -> str:
    if candidate.batch_dependent and not best.batch_dependent:
        return f"inside the budget, and its vectors change with their batch: {best.name} is taken"
    inside = [c for c in inside if c.batch_dependent == best.batch_dependent]
    equal = _fastest(inside)
    if candidate in equal:
        more = ", and drifts more" if _drifts_more(candidate, best) else ""
        return f"inside the budget, no faster than {best.name} within the intervals{more}"
    faster = best if best.high_ms < candidate.low_ms else min(equal, key=lambda c: c.high_ms)
    ratio = candidate.figures["p50"] / faster.figures["p50"]
    return f"inside the budget, {ratio:.2f}x the time of {faster.name}"


def _drifts_more(one: Candidate, other: Candidate) -> bool:
    return one.figures.get("drift", 0.0) > other.figures.get("drift", 0.0)
