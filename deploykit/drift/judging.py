"""A drift held against a budget: non-inferiority, one-sided, 99 % sure.

A term passes when even the pessimistic 99 % bound of what was measured is inside its limit, and fails when even the
optimistic one is outside. In between the data cannot tell, and more of it can.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from deploykit.budget import Budget, Limit
from deploykit.drift.comparison import Drift
from deploykit.drift.intervals import FEWEST, Figure, lower_rank
from deploykit.errors import RecipeError

Status = Literal["PASS", "FAIL", "INCONCLUSIVE", "NOT MEASURED"]

#: The terms of a budget that drift decides; the others need a clock or the files.
TERMS = ("drift", "p1", "task")

# Nobody labels so many times the data: then the message does not ask for it.
_FAR = 100

_TASKS = {
    "spearman": "Spearman x 100 of the scored pairs",
    "probe_frozen": "accuracy of the linear probe fitted on the reference",
    "probe_refitted": "accuracy of linear probes fitted on each side",
}


@dataclass(frozen=True)
class TermVerdict:
    """One limit: ``measured`` and the one-sided 99 % ``bound`` that decided, in the term's unit."""

    term: str
    limit: str
    status: Status
    measured: float | None
    bound: float | None
    sentence: str


@dataclass(frozen=True)
class Verdict:
    """All limits. ``left_out`` are the budget's limits that drift does not decide."""

    status: Status
    terms: tuple[TermVerdict, ...]
    left_out: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self)


def verdict(drift: Drift, budget: Budget) -> Verdict:
    """FAIL when a term fails, else INCONCLUSIVE when one cannot be told, else PASS.

    A term that was not measured (``task`` without labels) decides nothing, and its sentence says so; when no term was
    measured the verdict is INCONCLUSIVE. `RecipeError` when the budget limits nothing that drift measures.
    """
    check_budget(budget)
    terms = tuple(_judge(drift, limit) for limit in budget.only(TERMS).limits)
    statuses = {term.status for term in terms}
    status: Status = "PASS"
    if "FAIL" in statuses:
        status = "FAIL"
    elif "INCONCLUSIVE" in statuses or "PASS" not in statuses:
        status = "INCONCLUSIVE"
    return Verdict(status, terms, tuple(limit.text for limit in budget.limits if limit.term not in TERMS))


def check_budget(budget: Budget) -> None:
    """`RecipeError` when the budget limits nothing that drift measures, or a change of it: said before the work."""
    for limit in budget.only(["drift"]).limits:
        if limit.relative:
            raise RecipeError(
                f"{limit.text} limits how much further from fp32 than a baseline something may be, and none is here",
                hint="write drift<=0.01; `deploykit gate` has a baseline",
            )
    if not budget.only(TERMS).limits:
        raise RecipeError(
            f"the budget '{budget}' limits nothing that drift measures", hint=f"limit one of {', '.join(TERMS)}"
        )


@dataclass(frozen=True)
class _Measured:
    """A term's figure turned so that its limit applies: the value, the pessimistic and the optimistic bound."""

    value: float
    bad: float | None
    good: float | None
    what: str
    n: int
    unit: str


def _judge(drift: Drift, limit: Limit) -> TermVerdict:
    found = _measured(drift, limit.term)
    if found is None:
        sentence = f"The {limit.term} was not measured: the data has neither labels nor scored pairs."
        return TermVerdict(limit.term, limit.text, "NOT MEASURED", None, None, sentence)
    said = (
        f"{found.what} is {_text(limit.term, found.value)}{found.unit} over {found.n:,} {_counted(drift, limit.term)}"
    )
    status: Status = "INCONCLUSIVE"
    bound = found.bad
    if found.bad is not None and limit.holds(found.bad):
        status = "PASS"
    elif found.good is not None and not limit.holds(found.good):
        status, bound = "FAIL", found.good
    sentence = f"{said}; {_reason(limit, found, status)}."
    return TermVerdict(limit.term, limit.text, status, found.value, bound, sentence)


def _measured(drift: Drift, term: str) -> _Measured | None:
    if term == "task":
        return _lost(drift.task) if drift.task else None
    figure = drift.figure("drift" if term == "drift" else "cosine_p1")
    if figure is None:
        return None
    if term == "drift":
        return _Measured(figure.value, figure.upper99, figure.lower99, "The drift", figure.n, "")
    what = "The 1st percentile of the cosine"
    return _Measured(figure.value, figure.lower99, figure.upper99, what, figure.n, "")


def _lost(figure: Figure) -> _Measured:
    """Points lost are the change with its sign turned, and so are its bounds."""
    bad = None if figure.lower99 is None else -figure.lower99
    good = None if figure.upper99 is None else -figure.upper99
    what = f"The loss in {_TASKS[figure.name]} ({figure.reference:.2f} to {figure.candidate:.2f})"
    return _Measured(-figure.value, bad, good, what, figure.n, " points")


def _reason(limit: Limit, found: _Measured, status: Status) -> str:
    side = "at most" if limit.operator == "<=" else "at least"
    other = "at least" if limit.operator == "<=" else "at most"
    if status == "PASS" and found.bad is not None:
        return f"with 99 % confidence it is {side} {_text(limit.term, found.bad)}, inside {limit.text}"
    if status == "FAIL" and found.good is not None:
        return f"with 99 % confidence it is {other} {_text(limit.term, found.good)}, outside {limit.text}"
    where = "inside" if limit.holds(found.value) else "outside"
    return f"that is {where} {limit.text}, and not yet sure: {_missing(limit, found)}"


def _missing(limit: Limit, found: _Measured) -> str:
    if found.n < FEWEST:
        return f"{found.n} are too few to tell, give {FEWEST} or more"
    if found.bad is None:
        return f"99 % confidence in a 1st percentile takes {_fewest_for_p1()} inputs"
    gap, distance = abs(found.bad - found.value), abs(limit.value - found.value)
    needed = found.n * (gap / distance) ** 2 if distance else float("inf")
    near = needed < _FAR * found.n
    more = f"about {_rounded(needed)} would tell" if near else "it stands too close to the limit to tell"
    return f"it may be as bad as {_text(limit.term, found.bad)} ({more})"


def _fewest_for_p1() -> int:
    return next(n for n in range(100, 10_000) if lower_rank(n, 0.01, 0.01) >= 1)


def _counted(drift: Drift, term: str) -> str:
    return "scored pairs" if term == "task" and drift.task and drift.task.name == "spearman" else "inputs"


def _text(term: str, value: float) -> str:
    if term == "task":
        return f"{round(value, 2) + 0.0:.2f}"
    return f"{value:.5f}" if abs(value) >= 1e-4 or value == 0 else f"{value:.1e}"


def _rounded(value: float) -> str:
    digits = max(0, len(str(int(value))) - 2)
    return f"{-(-int(value) // 10**digits) * 10**digits:,}"
