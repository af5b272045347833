"""Is B slower than A? Paired runs, an exact interval, and three answers: PASS, FAIL, INCONCLUSIVE.

Each arm runs in a fresh process, both arms of a pair one after the other, in the order of a seeded coin; a process
gives one value per metric. The statistic is the median of ln(B/A) over the pairs, with the order-statistic interval of
`deploykit.measure.stats`: it holds for any distribution, and draws no random numbers.

A **screen** of 10 pairs passes what shows no sign of a regression and is sharp enough to have shown one. What is left
is **confirmed** with 30 new pairs, 45 or 60 while that cannot tell or is wide; the screen's pairs are thrown away,
since they were selected for looking slow. Where values come from is a callable, so that all of it can be simulated.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from deploykit.measure.stats import Median, interval_rank, median

Arm = Literal["baseline", "candidate"]
Status = Literal["PASS", "FAIL", "INCONCLUSIVE"]
#: Runs one fresh process of an arm and returns its value of each of these metrics: larger is slower, all above 0.
Source = Callable[[Arm, Sequence[str]], Mapping[str, float]]
#: Hears the stage, how many pairs of it are done, and how many it has.
Progress = Callable[[str, int, int], None]
#: Says whether the time is up; asked before every pair.
Over = Callable[[], bool]

ARMS: tuple[Arm, Arm] = ("baseline", "candidate")


@dataclass(frozen=True)
class Rules:
    """How many pairs, and how sure. ``alpha`` is the one-sided risk of a false alarm over all metrics together.

    The thresholds follow from a metric's limit t (0.03: 3 % slower is too slow): the screen passes up to t / 2 with a
    half-width up to t. The confirmation fails what is slower for sure by a median above t, cannot tell where the median
    is above t and that is not sure, or where the half-width is above t, and passes the rest. It is extended while it
    cannot tell, or the half-width is above 2 t / 3. What is faster for sure (its upper bound is below 0) passes however
    wide the interval is.
    """

    screen: int = 10
    confirm: tuple[int, ...] = (30, 45, 60)
    alpha: float = 0.005
    confidence: float = 0.95


@dataclass(frozen=True)
class Comparison:
    """One metric. ``change`` is the median of B/A - 1, ``low`` to ``high`` its 95 % interval, ``bound`` the one-sided
    lower bound that a FAIL needs above 0, ``ceiling`` the upper one; ``half_width`` is of the interval of ln(B/A). All
    infinite with too few pairs.

    ``baseline`` and ``candidate`` are the values of the processes that decided, in the order of the pairs. ``cut`` says
    that the time was up before there was a decision.
    """

    metric: str
    status: Status
    limit: float
    change: float
    low: float
    high: float
    bound: float
    ceiling: float
    half_width: float
    stage: Literal["screen", "confirm"]
    baseline: tuple[float, ...]
    candidate: tuple[float, ...]
    cut: bool = False

    @property
    def pairs(self) -> int:
        """How many pairs decided."""
        return len(self.baseline)

    def of(self, arm: Arm, confidence: float = 0.95) -> Median:
        """The median over the arm's processes."""
        return median(self.baseline if arm == "baseline" else self.candidate, confidence)


def compare(
    source: Source,
    limits: Mapping[str, float],
    seed: int = 0,
    rules: Rules | None = None,
    on_progress: Progress = lambda stage, done, total: None,
    over: Over = lambda: False,
) -> dict[str, Comparison]:
    """Judge every metric of ``limits``, which maps it to the change that is still allowed.

    A limit above 0 asks "is it slower?": the rules above. A limit of 0 or below asks for a gain (-0.1: at least 10 %
    faster), and passes or fails only when the whole interval is on one side. The same ``seed`` gives the same order of
    arms.

    When ``over`` says so, no pair is begun but the first. A stage that was cut short decides nothing: what no whole one
    has decided is INCONCLUSIVE.
    """
    rules = rules or Rules()
    if not limits:
        return {}
    coin = random.Random(seed)
    alpha = rules.alpha / len(limits)
    run = _Run(source, coin, on_progress, over)
    pairs = run(list(limits), rules.screen, "screen", (0, rules.screen))
    screened = {name: _judged(name, limits[name], pairs[name], "screen", alpha, rules) for name in limits}
    if _short(pairs, rules.screen):
        return {name: replace(found, status="INCONCLUSIVE", cut=True) for name, found in screened.items()}
    decided = {name: found for name, found in screened.items() if found.status == "PASS"}
    waiting = [name for name in limits if name not in decided]
    values: dict[str, list[tuple[float, float]]] = {name: [] for name in waiting}
    done = 0
    for total in rules.confirm:
        if not waiting:
            break
        new = run(waiting, total - done, "confirm", (done, total))
        if _short(new, total - done):
            if not done:
                decided |= {name: _cut(screened[name], new[name], alpha, rules) for name in waiting}
            break
        done = total
        for name in waiting:
            values[name] += new[name]
            decided[name] = _judged(name, limits[name], values[name], "confirm", alpha, rules)
        waiting = [name for name in waiting if _unsettled(decided[name])]
    return {name: decided[name] for name in limits}


def judge(
    metric: str,
    limit: float,
    pairs: Sequence[tuple[float, float]],
    stage: Literal["screen", "confirm"],
    alpha: float,
    confidence: float = 0.95,
) -> Comparison:
    """What ``pairs`` of (baseline, candidate) say. In the screen only PASS is an answer: INCONCLUSIVE means confirm."""
    logs = [math.log(after / before) for before, after in pairs]
    middle = median(logs, confidence)
    half_width = (middle.high - middle.low) / 2
    ordered = sorted(logs)
    rank = interval_rank(len(logs), alpha)
    bound = ordered[rank - 1] if rank else -math.inf
    top = ordered[len(logs) - rank] if rank else math.inf
    decide = _gain if limit <= 0 else _screened if stage == "screen" else _confirmed
    status = decide(_Found(middle.value, half_width, bound, top), limit)
    if stage == "screen" and status != "PASS":
        status = "INCONCLUSIVE"
    before, after = (tuple(pair[arm] for pair in pairs) for arm in (0, 1))
    return Comparison(
        metric=metric,
        status=status,
        limit=limit,
        change=_change(middle.value),
        low=_change(middle.low),
        high=_change(middle.high),
        bound=_change(bound),
        ceiling=_change(top),
        half_width=half_width,
        stage=stage,
        baseline=before,
        candidate=after,
    )


@dataclass(frozen=True)
class _Found:
    """Of ln(B/A): the median, the half-width of its interval, its one-sided lower and upper bound."""

    median: float
    half_width: float
    lower: float
    upper: float


def _screened(found: _Found, limit: float) -> Status:
    if found.upper < 0:
        return "PASS"
    quiet = found.half_width <= math.log1p(limit)
    return "PASS" if quiet and found.median <= math.log1p(limit / 2) else "INCONCLUSIVE"


def _confirmed(found: _Found, limit: float) -> Status:
    slow = found.median > math.log1p(limit)
    if slow and found.lower > 0:
        return "FAIL"
    unsure = slow or found.half_width > math.log1p(limit)
    return "INCONCLUSIVE" if unsure and found.upper >= 0 else "PASS"


def _gain(found: _Found, limit: float) -> Status:
    if found.upper <= math.log1p(limit):
        return "PASS"
    return "FAIL" if found.lower > math.log1p(limit) else "INCONCLUSIVE"


def _judged(
    name: str,
    limit: float,
    pairs: Sequence[tuple[float, float]],
    stage: Literal["screen", "confirm"],
    alpha: float,
    rules: Rules,
) -> Comparison:
    return judge(name, limit, pairs, stage, alpha, rules.confidence)


def _unsettled(found: Comparison) -> bool:
    """Would more pairs decide it, or sharpen it?"""
    wide = found.limit > 0 and found.half_width > math.log1p(found.limit * 2 / 3) and found.ceiling >= 0
    return found.status == "INCONCLUSIVE" or wide


def _short(pairs: Mapping[str, Sequence[tuple[float, float]]], count: int) -> bool:
    return any(len(found) < count for found in pairs.values())


def _cut(screened: Comparison, pairs: Sequence[tuple[float, float]], alpha: float, rules: Rules) -> Comparison:
    """What is known of a metric whose confirmation was cut short: its pairs, or the screen's, and no decision."""
    if not pairs:
        return replace(screened, status="INCONCLUSIVE", cut=True)
    found = _judged(screened.metric, screened.limit, pairs, "confirm", alpha, rules)
    return replace(found, status="INCONCLUSIVE", cut=True)


@dataclass
class _Run:
    """Takes pairs from ``source`` until they are enough, or the time is up."""

    source: Source
    coin: random.Random
    on_progress: Progress
    over: Over
    begun: bool = False

    def __call__(
        self, metrics: Sequence[str], count: int, stage: str, place: tuple[int, int]
    ) -> dict[str, list[tuple[float, float]]]:
        """Up to ``count`` pairs of (baseline, candidate) for every metric; ``place`` is (pairs done before, in all)."""
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in metrics}
        for index in range(count):
            if self.begun and self.over():
                break
            self.begun = True
            self.on_progress(stage, place[0] + index, place[1])
            order = ARMS if self.coin.random() < 0.5 else ARMS[::-1]
            values = {arm: self.source(arm, metrics) for arm in order}
            for name in metrics:
                found[name].append((values["baseline"][name], values["candidate"][name]))
        return found


def _change(log: float) -> float:
    return math.expm1(log) if math.isfinite(log) else math.copysign(math.inf, log)
