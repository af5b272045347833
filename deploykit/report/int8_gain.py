"""What int8 gains in speed over fp32 on the same engine, in one line a variant, and why if it is nothing."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from deploykit.runtime import hardware

_REFERENCE = "fp32"
_INT8 = "int8"
# Below this int8 gains nothing that a user would notice, and the reader is told why.
_WORTH = 1.05
_SPELLED_OUT = 2


@dataclass(frozen=True)
class Timed:
    """Times in ms of one variant in one workload, with an interval, or round by round."""

    name: str
    target: str
    precision: str
    workload: str
    ms: tuple[float, float, float]

    @property
    def middle(self) -> float:
        """The median."""
        return self.ms[1]


def sentences(timed: Sequence[Timed], features: Collection[str]) -> tuple[str, ...]:
    """A sentence for each int8 variant whose engine was timed in fp32 too; ``features`` are the CPU's, if known.

    The interval of a ratio is that of its worst and best case: lowest against highest time.
    """
    found = []
    for name in dict.fromkeys(one.name for one in timed if one.precision.startswith(_INT8)):
        pairs = [(one, base) for one in timed if one.name == name for base in timed if _is_base(base, one)]
        if not pairs:
            continue
        ratios = sorted(base.middle / one.middle for one, base in pairs)
        if len(pairs) > _SPELLED_OUT:
            told = f"{ratios[0]:.2f}x to {ratios[-1]:.2f}x the speed of {pairs[0][1].name} ({len(pairs)} points)"
        else:
            told = ", ".join(f"{_ratio_text(one, base)} ({one.workload})" for one, base in pairs)
            told += f" the speed of {pairs[0][1].name}"
        found.append(f"{name} runs at {told}{_reason(features) if ratios[0] < _WORTH else ''}")
    return tuple(found)


def _is_base(base: Timed, one: Timed) -> bool:
    return (base.target, base.workload, base.precision) == (one.target, one.workload, _REFERENCE)


def _ratio_text(one: Timed, base: Timed) -> str:
    (fast, _, slow), (base_fast, _, base_slow) = one.ms, base.ms
    return f"{base.middle / one.middle:.2f}x [{base_fast / slow:.2f}, {base_slow / fast:.2f}]"


def _reason(features: Collection[str]) -> str:
    if not features:
        return ""
    if hardware.multiplies_int8(features):
        return ": int8 gains little or nothing for this model here, and saves size alone"
    return ": this CPU has no instructions for int8 products (VNNI), so int8 saves size, and hardly any time"
