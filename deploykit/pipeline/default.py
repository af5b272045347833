"""Which variant of a bundle is its default, why, and whether that has to be looked at again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from deploykit.runtime.busy import Busy
from deploykit.runtime.manifest import Variant
from deploykit.runtime.selection import WORTH, drift_of

# So many times as fast has one to be on a busy machine, where intervals are too narrow for what goes on.
_WORTH_WHEN_BUSY = 1.25
# An interval of the median this wide (high to low) says little.
_WIDE = 1.3


@dataclass(frozen=True)
class Default:
    """``why`` is a sentence; ``provisional`` says why the times do not settle it, and is empty where they do."""

    variant: str
    why: str
    provisional: str = ""

    @property
    def note(self) -> str:
        """For the user."""
        again = f"; provisional, and measured again at the next load: {self.provisional}" if self.provisional else ""
        return f"default: {self.variant}, {self.why}{again}"

    def to_json(self) -> dict[str, str]:
        """Plain data, for the manifest's provenance."""
        return asdict(self)


@dataclass(frozen=True)
class _Timed:
    """Geometric means over the workloads: of the median time, and of the ends of its interval."""

    variant: Variant
    p50: float
    low: float
    high: float


def default_of(variants: Sequence[Variant], busy: Busy | None) -> Default | None:
    """The fastest; of those that are not clearly slower, the one that drifts least, in the order given.

    One whose vectors change with their batch is taken only where there is no other. ``busy`` is what went on while
    they were timed. None where none was timed.
    """
    timed = [found for variant in variants if (found := _timed(variant)) is not None]
    steady = [t for t in timed if not t.variant.batch_dependent] or timed
    if not steady:
        return None
    disturbed = busy is not None and busy.is_busy
    fastest = min(steady, key=lambda t: t.p50)
    reach = fastest.p50 * (_WORTH_WHEN_BUSY if disturbed else WORTH)
    equal = [t for t in steady if t.low <= fastest.high or t.p50 <= reach]
    best = min(equal, key=lambda t: drift_of(t.variant))
    return Default(best.variant.name, _why(best, equal, steady, timed), _doubt(best, equal, steady, busy))


def _why(best: _Timed, equal: Sequence[_Timed], steady: Sequence[_Timed], timed: Sequence[_Timed]) -> str:
    moved = [t.variant.name for t in timed if t.variant.batch_dependent and t not in steady]
    but = f" (but {', '.join(moved)}, whose vectors change with their batch)" if moved else ""
    if len(timed) == 1:
        return "the only one that was timed"
    if len(steady) == 1:
        return f"the only one{but}"
    others = [t.variant.name for t in equal if t is not best]
    if others:
        least = ", and drifts least" if any(drift_of(t.variant) > drift_of(best.variant) for t in equal) else ""
        return f"as fast as {', '.join(others)} as far as the times tell{least}{but}"
    return f"the fastest{but}"


def _doubt(best: _Timed, equal: Sequence[_Timed], steady: Sequence[_Timed], busy: Busy | None) -> str:
    """Why the times do not settle it; empty for a single variant, where there is nothing to choose."""
    if len(steady) == 1:
        return ""
    if busy is not None and busy.is_busy:
        return busy.sentence
    overlapping = [t.variant.name for t in equal if t is not best and t.low <= best.high and best.low <= t.high]
    if overlapping:
        return f"the intervals of {best.variant.name} and {', '.join(overlapping)} overlap"
    if not best.high <= _WIDE * best.low:
        return f"the interval of its time is wide ({best.low:.3g} to {best.high:.3g} ms)"
    return ""


def _timed(variant: Variant) -> _Timed | None:
    rows = [row for row in variant.latency.values() if isinstance(row, Mapping) and "p50_ms" in row]
    if not rows:
        return None
    return _Timed(
        variant,
        _mean([row["p50_ms"] for row in rows]),
        _mean([_end(row, "low_ms", 0.0) for row in rows]),
        _mean([_end(row, "high_ms", math.inf) for row in rows]),
    )


def _end(row: Mapping[str, Any], key: str, unknown: float) -> float:
    """An end of the interval; that of one that is not known lies as far out as can be."""
    value = row.get(key)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else unknown


def _mean(values: Sequence[float]) -> float:
    if any(value in (0.0, math.inf) for value in values):
        return min(values) if 0.0 in values else math.inf
    return math.exp(sum(map(math.log, values)) / len(values))
