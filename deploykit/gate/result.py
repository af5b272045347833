"""What a gate found: rows, and the verdict over them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from deploykit.measure.paired import Comparison, Status

SCHEMA = "deploykit.gate/1"
RowStatus = Literal["PASS", "FAIL", "INCONCLUSIVE", "NOT MEASURED"]


@dataclass(frozen=True)
class Row:
    """One thing that was judged. The sentence says who, what, how much and how sure; ``look`` where to look.

    ``figures`` are what was measured, plain data.
    """

    name: str
    status: RowStatus
    limit: str
    sentence: str
    look: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Identity:
    """One side: ``name`` is ``NAME.bundle@variant``, ``digest`` that of its bundle; ``runs`` what its audit says."""

    name: str
    digest: str
    runs: str
    python: str
    software: Mapping[str, str]


@dataclass(frozen=True)
class Result:
    """The verdict. ``skipped`` says what was not looked at and why; ``noise`` what the timed processes went through."""

    status: Status
    candidate: Identity
    baseline: Identity
    budget: str
    data: str
    rows: tuple[Row, ...]
    hardware: Mapping[str, Any]
    seed: int
    seconds: float
    noise: str = ""
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data, schema ``deploykit.gate/1``, kind ``gate``."""
        return {"schema": SCHEMA, "kind": "gate", **_finite(asdict(self))}


@dataclass(frozen=True)
class Unjudged:
    """A gate that could not run: no verdict, but what is missing. ``error`` is the name of its class.

    Names are as they were given; ``baseline`` is empty where there is none.
    """

    candidate: str
    baseline: str
    error: str
    message: str
    hint: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data, schema ``deploykit.gate/1``, kind ``error``."""
        return {"schema": SCHEMA, "kind": "error", "status": "ERROR", **_finite(asdict(self))}


@dataclass(frozen=True)
class AaResult:
    """The gate's own noise: a bundle against itself, ``runs`` times. Every FAIL is a false alarm.

    ``upper`` is the one-sided 95 % bound (Clopper-Pearson) of the rate of false alarms; ``half_width`` the median
    over runs and metrics of the half-width of the interval. ``asked`` is how many runs there were to be; 0: as many.
    """

    subject: Identity
    budget: str
    comparisons: tuple[tuple[Comparison, ...], ...]
    hardware: Mapping[str, Any]
    seed: int
    seconds: float
    noise: str
    asked: int = 0

    @property
    def stopped(self) -> bool:
        """Was the time up before all runs were whole?"""
        return self.runs < self.asked or any(c.cut for run in self.comparisons for c in run)

    @property
    def runs(self) -> int:
        """How many."""
        return len(self.comparisons)

    def count(self, status: Status) -> int:
        """Runs with that verdict."""
        return sum(verdict([c.status for c in run]) == status for run in self.comparisons)

    @property
    def half_width(self) -> float:
        """Median half-width, as a fraction."""
        widths = sorted(c.half_width for run in self.comparisons for c in run)
        return widths[len(widths) // 2]

    @property
    def upper(self) -> float:
        """The rate of false alarms is below this with 95 % confidence."""
        return rate_bound(self.count("FAIL"), self.runs)

    @property
    def sentence(self) -> str:
        """For people."""
        said = (
            f"{self.count('FAIL')} false alarms in {self.runs} runs of {self.subject.name} against itself (below "
            f"{100 * self.upper:.0f} % with 95 % confidence), {self.count('INCONCLUSIVE')} inconclusive"
        )
        if self.stopped:
            said += f", and the time was up before {self.asked} were done"
        return f"{said}; half-width ±{100 * self.half_width:.1f} %, hw {self.hardware['id']}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data, schema ``deploykit.gate/1``, kind ``aa``."""
        data = {
            "schema": SCHEMA,
            "kind": "aa",
            "runs": self.runs,
            "false_alarms": self.count("FAIL"),
            "inconclusive": self.count("INCONCLUSIVE"),
            "false_alarm_rate_upper95": self.upper,
            "half_width": self.half_width,
            "sentence": self.sentence,
        }
        return {**data, **_finite(asdict(self))}


def verdict(statuses: Sequence[RowStatus]) -> Status:
    """FAIL when one fails, else INCONCLUSIVE when one cannot be told, else PASS; what was not measured decides
    nothing.
    """
    if "FAIL" in statuses:
        return "FAIL"
    return "INCONCLUSIVE" if "INCONCLUSIVE" in statuses else "PASS"


def rate_bound(count: int, runs: int, confidence: float = 0.95) -> float:
    """The one-sided upper bound of a rate that was seen ``count`` times in ``runs`` (Clopper and Pearson, 1934)."""
    if count >= runs:
        return 1.0
    low, high = count / runs, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        tail = sum(math.comb(runs, k) * middle**k * (1 - middle) ** (runs - k) for k in range(count + 1))
        low, high = (middle, high) if tail > 1 - confidence else (low, middle)
    return high


def _finite(value: Any) -> Any:
    """JSON has no word for infinity: it becomes null."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
