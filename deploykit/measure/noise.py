"""The noise of machines: made up, to try a procedure on, and measured, to say what a figure went through.

A model is what shared and dedicated runners have been seen to do: a process as a whole is a little faster or slower
than the last (placement in memory, clock), the machine drifts over minutes (neighbours, heat), and now and then a
process is hit hard. Published spreads of repeated benchmarks lie between 0.5 % (a machine of one's own) and some 10 %
(busy hosted runners); the models span that.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploykit.measure.paired import Arm


@dataclass(frozen=True)
class Model:
    """All shares are of ln(time). ``process`` and ``drift`` are standard deviations, ``memory`` is how much of the
    drift is left from one process to the next; with the probability ``hit`` a process is slower by up to ``hit_size``.
    """

    process: float
    drift: float
    memory: float
    hit: float
    hit_size: float


#: A machine of one's own, a hosted runner on a good and on a usual day, and one that shares its cores with others.
MODELS: Mapping[str, Model] = {
    "dedicated": Model(process=0.005, drift=0.003, memory=0.9, hit=0.01, hit_size=0.05),
    "quiet runner": Model(process=0.012, drift=0.01, memory=0.9, hit=0.03, hit_size=0.15),
    "usual runner": Model(process=0.02, drift=0.03, memory=0.95, hit=0.06, hit_size=0.3),
    "crowded runner": Model(process=0.045, drift=0.06, memory=0.9, hit=0.12, hit_size=0.5),
}


class Simulated:
    """A source of values for `deploykit.measure.paired.compare`: 10 ms, the candidate slower by ``slower`` (0.05: 5 %).

    The same seed gives the same values. ``started`` counts the processes that there would have been.
    """

    def __init__(self, model: Model, slower: float, seed: int) -> None:
        self._model, self._slower = model, slower
        self._draw = random.Random(seed)
        self._drift = self._draw.gauss(0, model.drift)
        self.started = 0

    def __call__(self, arm: Arm, metrics: Sequence[str]) -> dict[str, float]:
        """The values of one process; what slows a process slows all its metrics."""
        model, draw = self._model, self._draw
        self.started += 1
        fresh = math.sqrt(1 - model.memory**2) * model.drift
        self._drift = model.memory * self._drift + draw.gauss(0, fresh)
        log = self._drift + draw.gauss(0, model.process)
        if draw.random() < model.hit:
            log += draw.random() * model.hit_size
        if arm == "candidate":
            log += math.log1p(self._slower)
        return {name: 10.0 * math.exp(log) for name in metrics}


@dataclass(frozen=True)
class Seen:
    """What the measuring processes saw: the median share of stolen time and its largest, the median load, the median
    number of forced context switches, the lowest and highest clock in MHz. None where the system does not tell.
    """

    processes: int
    steal: float | None
    steal_max: float | None
    load: float
    forced_switches: float
    mhz: tuple[float, float] | None

    @property
    def sentence(self) -> str:
        """For people: ``40 processes; load 1.2, 0.0 % of the time stolen (0.3 % at worst), clock 2.6 GHz``."""
        parts = [f"load {self.load:.1f}"]
        if self.steal is not None and self.steal_max is not None:
            parts.append(f"{100 * self.steal:.1f} % of the time stolen ({100 * self.steal_max:.1f} % at worst)")
        parts.append(f"{self.forced_switches:,.0f} forced context switches a process")
        if self.mhz:
            low, high = (f"{mhz / 1000:.1f}" for mhz in self.mhz)
            parts.append(f"clock {low} GHz" if low == high else f"clock {low} to {high} GHz")
        return f"{self.processes} processes; " + ", ".join(parts)


def seen(reports: Sequence[Mapping[str, Any]]) -> Seen:
    """Sum up the ``noise`` of the workers' answers; at least one."""
    steal = [report["steal"] for report in reports if report["steal"] is not None]
    clocks = [report["frequency"] for report in reports if report["frequency"] is not None]
    return Seen(
        len(reports),
        statistics.median(steal) if steal else None,
        max(steal) if steal else None,
        statistics.median(report["load"] for report in reports),
        statistics.median(report["context_switches"]["forced"] for report in reports),
        (min(clock["low"] for clock in clocks), max(clock["high"] for clock in clocks)) if clocks else None,
    )
