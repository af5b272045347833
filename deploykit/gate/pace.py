"""How long the clock will take, and when the time is up."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from deploykit.errors import RecipeError
from deploykit.measure.paired import Rules

Now = Callable[[], float]


@dataclass
class Pace:
    """The processes of a gate, or of ``runs`` gates one after the other, and how long each has taken.

    ``process_s`` is the guess before the first has ended. ``max_minutes`` counts from ``began``, a reading of ``now``.
    """

    rules: Rules
    process_s: float = 0.0
    max_minutes: float | None = None
    runs: int = 1
    now: Now = time.monotonic
    began: float = field(default_factory=time.monotonic)
    seen_s: list[float] = field(default_factory=list)

    def over(self) -> bool:
        """Would another pair end after the time is up?"""
        if self.max_minutes is None:
            return False
        return self.now() + 2 * self.mean_s > self.began + 60 * self.max_minutes

    @property
    def mean_s(self) -> float:
        """Seconds of a process, as far as is known."""
        return sum(self.seen_s) / len(self.seen_s) if self.seen_s else self.process_s

    @property
    def estimate(self) -> str:
        """``timing takes 20 to 140 processes of about 4 s: 2 to 10 minutes``."""
        fewest, most = (2 * pairs * self.runs for pairs in self._pairs())
        span = _span(fewest * self.mean_s, most * self.mean_s)
        said = f"timing takes {fewest} to {most} processes of about {self.mean_s:.2g} s: {span}"
        if self.max_minutes is None:
            return f"{said}; --max-minutes ends it sooner"
        return f"{said}; what is not decided {self.max_minutes:g} min after the start is INCONCLUSIVE"

    def place(self, stage: str, done: int, total: int, runs_left: int = 0) -> str:
        """``timing, screen: pair 3 of 10, at most 9 minutes more``; ``runs_left`` are whole gates that follow."""
        most = self._pairs()[1]
        left = (self.rules.screen - done + max(self.rules.confirm, default=0)) if stage == "screen" else None
        pairs = left if left is not None else max(self.rules.confirm, default=0) - done
        seconds = 2 * self.mean_s * (pairs + runs_left * most)
        if self.max_minutes is not None:
            seconds = min(seconds, max(0.0, self.began + 60 * self.max_minutes - self.now()))
        return f"timing, {stage}: pair {done + 1} of {total}, at most {_minutes(seconds)} more"

    def _pairs(self) -> tuple[int, int]:
        return self.rules.screen, self.rules.screen + max(self.rules.confirm, default=0)


def check_minutes(minutes: float | None) -> None:
    """`RecipeError` for a time in which nothing can be measured."""
    if minutes is not None and not (minutes > 0 and math.isfinite(minutes)):
        raise RecipeError(f"max_minutes is {minutes:g}, expected more than 0", hint="leave it out for no limit")


def _span(low: float, high: float) -> str:
    short, long = _minutes(low), _minutes(high)
    return short if short == long else f"{short} to {long}"


def _minutes(seconds: float) -> str:
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else "1 minute"
