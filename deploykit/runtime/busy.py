"""What else a machine does while something is timed on it: what other processes take of the cores, and what its host
steals. A choice that was made on a busy machine is made again on a quiet one.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deploykit.runtime.hardware import usable_cores

_STAT: Final = Path("/proc/stat")
#: Shares of the usable cores' time from which on a machine counts as busy.
_OTHERS, _STOLEN = 0.10, 0.02
_LOOK_S: Final = 0.15


@dataclass(frozen=True)
class Busy:
    """Shares of the usable cores' time that went to other processes and to the machine's host, and the load."""

    others: float
    stolen: float
    load: float

    @property
    def is_busy(self) -> bool:
        """Whether times taken meanwhile say little about a quiet machine."""
        return self.others > _OTHERS or self.stolen > _STOLEN

    @property
    def sentence(self) -> str:
        """For people: ``the machine was busy: others took 62 % of its 2 cores, 0.0 % was stolen, load 3.1``."""
        said = "busy" if self.is_busy else "quiet"
        return (
            f"the machine was {said}: others took {100 * self.others:.0f} % of its {usable_cores()} cores, "
            f"{100 * self.stolen:.1f} % was stolen, load {self.load:.1f}"
        )


class Meter:
    """Watches the cores from when it is made, while this process works or waits."""

    def __init__(self) -> None:
        self._began = _counters()
        self._own_s = time.process_time()

    def read(self) -> Busy | None:
        """What went on until now; None where the system does not tell, or nothing has passed."""
        ended = _counters()
        if self._began is None or ended is None:
            return None
        total, worked, stolen = (after - before for before, after in zip(self._began, ended, strict=True))
        if total <= 0:
            return None
        others = worked - (time.process_time() - self._own_s)
        return Busy(max(0.0, others / total), stolen / total, os.getloadavg()[0])


def look(seconds: float = _LOOK_S) -> Busy | None:
    """What others do at this moment, while this process waits."""
    meter = Meter()
    time.sleep(seconds)
    return meter.read()


def _counters() -> tuple[float, float, float] | None:
    """Seconds of the usable cores: passed, worked and stolen, each summed over them."""
    try:
        usable = {f"cpu{core}" for core in os.sched_getaffinity(0)}
        rows = [line.split() for line in _STAT.read_text(encoding="ascii").splitlines()]
        # user nice system idle iowait irq softirq steal; guest time is counted in user already.
        ticks = [[int(value) for value in row[1:9]] for row in rows if row and row[0] in usable]
    except (OSError, ValueError, AttributeError):
        return None
    if not ticks or any(len(row) < 8 for row in ticks):
        return None
    rate = os.sysconf("SC_CLK_TCK")
    total, idle, stolen = (
        sum(map(sum, ticks)) / rate,
        sum(row[3] + row[4] for row in ticks) / rate,
        sum(row[7] for row in ticks) / rate,
    )
    return total, total - idle - stolen, stolen
