"""The clock: pairs of fresh processes, and what their values say about each limit on time and memory."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploykit.budget import Budget, Limit, figure_text
from deploykit.errors import CheckError, RecipeError
from deploykit.gate.fixed import LEAST_BYTES
from deploykit.gate.result import Row, RowStatus
from deploykit.gate.sides import Side, unusable
from deploykit.measure import process
from deploykit.measure.paired import Arm, Comparison
from deploykit.measure.stats import interval_rank, median

TERMS = ("p50", "p99", "throughput")
#: The metric of a process's peak memory. It is of all workloads together.
MEMORY = "memory"
#: So many calls a 99th percentile takes to have an interval: 1 - 0.99^n - 0.01 n 0.99^(n-1) is then 99 %.
P99_CALLS = 662


@dataclass(frozen=True)
class Timing:
    """Bounds of one process per workload: both ``seconds`` and ``calls`` are reached, after both of the warm-up.

    ``timeout_s`` ends a process that hangs; where a 99th percentile takes more calls it has as much more time.
    """

    seconds: float = 1.0
    calls: int = 64
    warm_seconds: float = 0.3
    warm_calls: int = 10
    timeout_s: float = 300.0
    extra_work: float = 0.0


class Clock:
    """A source of values for `deploykit.measure.paired.compare`: a metric is ``workload term``, as ``single p50``, or
    `MEMORY`.

    ``answers`` keeps what every process said of itself: memory, noise, hardware. ``on_process`` hears its seconds.
    """

    def __init__(
        self,
        sides: Mapping[Arm, Side],
        points: Sequence[Mapping[str, Any]],
        timing: Timing,
        threads: int | None,
        on_process: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self.sides, self._points, self._timing, self._threads = sides, points, timing, threads
        self._on_process = on_process
        self.answers: list[Mapping[str, Any]] = []

    def __call__(self, arm: Arm, metrics: Sequence[str]) -> dict[str, float]:
        """One fresh process of ``arm``. `CheckError` for a candidate without finite vectors, `BundleError` for such a
        baseline.
        """
        side, timing = self.sides[arm], self._timing
        # With fewer workloads a process needs less memory: that is only told where all of them run.
        wanted = {p["name"] for p in self._points if MEMORY in metrics or any(_is_of(m, p["name"]) for m in metrics)}
        tail = any(metric.endswith("p99") for metric in metrics)
        bounds = {key: getattr(timing, key) for key in ("seconds", "calls", "warm_seconds", "warm_calls")}
        calls = max(timing.calls, P99_CALLS) if tail else timing.calls
        patience = timing.timeout_s * max(1.0, calls / max(1, timing.calls))
        job = process.job(
            side.path,
            side.variant,
            [dict(point) for point in self._points if point["name"] in wanted],
            threads=self._threads,
            extra_work=timing.extra_work if arm == "candidate" else 0.0,
            **{**bounds, "calls": calls},
        )
        began = time.monotonic()
        try:
            answer = process.measure(job, side.label, python=side.python, timeout_s=patience)
        except CheckError as error:
            if arm == "baseline":
                raise unusable(error) from error
            raise
        self._on_process(time.monotonic() - began)
        times = {point["name"]: sorted(point.pop("times_ms")) for point in answer["points"]}
        self.answers.append(answer)
        values = {m: _value(times[m.partition(" ")[0]], m) for m in metrics if m != MEMORY}
        return values | ({MEMORY: float(answer["peak_rss_bytes"])} if MEMORY in metrics else {})


def check_counts_alarms(budget: Budget) -> None:
    """`RecipeError` for a limit on time whose failures would be no false alarms of a bundle against itself."""
    for limit in budget.only(TERMS).limits:
        if limit.relative and _allowed(limit) > 0:
            continue
        what = "asks for a gain" if limit.relative else "is on the time itself"
        raise RecipeError(
            f"{limit.text} {what}, and --aa counts how often a change is seen where there is none",
            hint="give --aa the change that is allowed, such as p50<=+3%",
        )


def metrics(budget: Budget, spelled: frozenset[str], points: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Every metric that the budget's limits on time and memory need, with the change that is allowed; infinite where
    only its value is limited.

    Times are limited for every workload, throughput for the largest batch alone. There it stands for a p50 that is not
    among the ``spelled`` terms: the default goes on for single calls.
    """
    found: dict[str, float] = {}
    for limit in budget.only(TERMS).limits:
        for name in _names(limit, spelled, points):
            allowed = _allowed(limit) if limit.relative else math.inf
            found[name] = min(found.get(name, math.inf), allowed)
    for limit in budget.only([MEMORY]).limits:
        found[MEMORY] = min(found.get(MEMORY, math.inf), limit.value if limit.relative else math.inf)
    return found


def rows(
    budget: Budget,
    spelled: frozenset[str],
    compared: Mapping[str, Comparison],
    clock: Clock,
    points: Sequence[Mapping[str, Any]],
    alpha: float,
    hardware: str,
) -> list[Row]:
    """The verdict on every limit on time and memory."""
    candidate, baseline = clock.sides["candidate"], clock.sides["baseline"]
    sides, found = (candidate, baseline), []
    for limit in budget.only(TERMS).limits:
        for name in _names(limit, spelled, points):
            if limit.relative:
                found.append(_relative_row(name, limit, compared[name], sides, hardware))
            else:
                items = _items(clock, name)
                found.append(_absolute_row(name, limit, compared[name], items, alpha / len(compared), candidate))
    for limit in budget.only([MEMORY]).limits:
        if limit.relative:
            found.append(_memory_row(limit, compared[MEMORY], candidate))
        else:
            found.append(_absolute_row(MEMORY, limit, compared[MEMORY], 1, alpha / len(compared), candidate))
    return found


def _names(limit: Limit, spelled: frozenset[str], points: Sequence[Mapping[str, Any]]) -> list[str]:
    names = [str(point["name"]) for point in points]
    if limit.term == "throughput":
        names = names[-1:]
    elif limit.term == "p50" and "p50" not in spelled and "throughput" in spelled:
        names = names[:-1]
    return [f"{name} {limit.term}" for name in names]


def _allowed(limit: Limit) -> float:
    """The change of a time that is allowed: a tenth less throughput is a ninth more time."""
    return 1 / (1 + limit.value) - 1 if limit.term == "throughput" else limit.value


def _value(times: Sequence[float], metric: str) -> float:
    """The process's value: the median of its calls, or their 99th percentile."""
    if metric.endswith("p99"):
        return times[min(len(times) - 1, math.ceil(0.99 * len(times)) - 1)]
    return median(times).value


def _is_of(metric: str, workload: str) -> bool:
    return metric.partition(" ")[0] == workload


def _items(clock: Clock, metric: str) -> int:
    name = metric.partition(" ")[0]
    return next(int(p["items"]) for a in clock.answers for p in a["points"] if p["name"] == name)


def _relative_row(name: str, limit: Limit, found: Comparison, sides: tuple[Side, Side], hardware: str) -> Row:
    candidate, baseline = sides
    ours, theirs = found.of("candidate").value, found.of("baseline").value
    against = f"{figure_text('p50', ours)} a call against {figure_text('p50', theirs)} of {baseline.name}"
    change = f"{_percent(found.change)} [{_percent(found.low)}, {_percent(found.high)}] in time"
    said = f"{candidate.label}: {name} {against}, {change} over {found.pairs} pairs, hw {hardware}"
    look = ""
    if found.status == "PASS":
        said += f", inside {limit.text}."
    else:
        said += f": {_reason(found)}."
        look = "run it on a quieter machine; `deploykit gate --aa` shows what this one can tell"
        look = "give it more time: --max-minutes" if found.cut else look
    if found.status == "FAIL":
        look = "the audit's row lists operations that moved; compare engine versions and settings of both bundles"
    figures = {
        **{key: getattr(found, key) for key in ("change", "low", "high", "bound", "half_width", "stage", "pairs")},
        "candidate_ms": list(found.candidate),
        "baseline_ms": list(found.baseline),
    }
    return Row(name, found.status, limit.text, said, look, figures)


def _memory_row(limit: Limit, found: Comparison, candidate: Side) -> Row:
    """Peak memory, judged as a time is: it differs from process to process too. Growth counts above `LEAST_BYTES`."""
    ours, theirs = found.of("candidate").value, found.of("baseline").value
    small = limit.value >= 0 and ours - theirs <= LEAST_BYTES
    status: RowStatus = "PASS" if small and not found.cut else found.status
    against = f"{figure_text(MEMORY, ours)} against {figure_text(MEMORY, theirs)}"
    interval = f"{_percent(found.change)} [{_percent(found.low)}, {_percent(found.high)}]"
    said = f"{candidate.label}: memory {against}, {interval} over {found.pairs} pairs of processes (peak of each)"
    look = ""
    if status == "PASS":
        word = "outside {}, but under 1 MiB" if small and found.status != "PASS" else "inside {}"
        said += f", {word.format(limit.text)}."
    else:
        said += f": {_reason(found, 'larger')}."
        look = "close what else runs here, or fix the threads: `--threads 1` makes memory steadier"
    if status == "FAIL":
        look = "look at weights that are held twice, workspaces, and what the process imports"
    figures = {
        **{key: getattr(found, key) for key in ("change", "low", "high", "bound", "half_width", "stage", "pairs")},
        "candidate_mib": [value / 2**20 for value in found.candidate],
        "baseline_mib": [value / 2**20 for value in found.baseline],
    }
    return Row(MEMORY, status, limit.text, said, look, figures)


def _reason(found: Comparison, worse: str = "slower") -> str:
    """Why it does not pass. A limit of 0 or below asks for a gain, and what misses that need not be slower."""
    if found.cut:
        return f"the time was up after {found.pairs} pairs, and nothing is decided"
    gain = found.limit <= 0
    wanted = f"{_percent(found.limit)} is {'demanded' if gain else 'allowed'}"
    bound = f"at least {_percent(found.bound)}, one-sided"
    if found.status == "FAIL":
        return (
            f"too small a gain for sure ({bound}), and {wanted}"
            if gain
            else f"{worse} for sure ({bound}), and {wanted}"
        )
    width = f"half-width {100 * found.half_width:.1f} %"
    if not gain and found.change > found.limit:
        return f"this machine cannot tell: that is more than is allowed, and not sure ({bound}; {width}, {wanted})"
    return f"this machine cannot tell ({width}, {wanted})"


def _absolute_row(name: str, limit: Limit, found: Comparison, items: int, alpha: float, candidate: Side) -> Row:
    """The candidate's own value, whose one-sided bound has to be on one side of the limit."""
    values = sorted(found.candidate)
    if limit.term == "throughput":
        values = sorted(1000 * items / value for value in values)
    middle, rank = median(values), interval_rank(len(values), alpha)
    low, high = (values[rank - 1], values[len(values) - rank]) if rank else (-math.inf, math.inf)
    good, bad = (low, high) if limit.operator == "<=" else (high, low)
    status: RowStatus = "PASS" if limit.holds(bad) else "INCONCLUSIVE" if limit.holds(good) else "FAIL"
    interval = f"[{figure_text(limit.term, middle.low)}, {figure_text(limit.term, middle.high)}]"
    shown = f"{figure_text(limit.term, middle.value)} {interval} over {len(values)} processes"
    word = {"PASS": "inside", "FAIL": "outside", "INCONCLUSIVE": "too close to tell from"}[status]
    figures = {"value": middle.value, "low": middle.low, "high": middle.high, "n": len(values)}
    look = "" if status == "PASS" else "an absolute limit holds for one machine: is this the one that it was made for?"
    return Row(name, status, limit.text, f"{candidate.label}: {name} {shown}, {word} {limit.text}.", look, figures)


def _percent(change: float) -> str:
    return f"{100 * change:+.1f} %" if math.isfinite(change) else ("+∞" if change > 0 else "-∞")
