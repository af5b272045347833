"""Order statistics: medians with exact intervals that assume nothing about the distribution of the times.

The interval for the median is the sign-test interval: order statistics k and n+1-k, where k is the largest rank with
P(Binomial(n, 1/2) < k) ≤ α/2 (David & Nagaraja, Order Statistics, 3rd ed., section 7.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Median:
    """A median with its interval and the number of values; in the unit of the values.

    ``low`` and ``high`` are infinite when there are too few values for the confidence asked for.
    """

    value: float
    low: float
    high: float
    n: int


def median(values: Sequence[float], confidence: float = 0.95) -> Median:
    """Median and its order-statistic interval; ``values`` must not be empty."""
    ordered = sorted(values)
    n = len(ordered)
    if n == 0:
        raise ValueError("the median of no values is not defined")
    middle = ordered[n // 2] if n % 2 else (ordered[n // 2 - 1] + ordered[n // 2]) / 2
    rank = interval_rank(n, (1 - confidence) / 2)
    if rank == 0:
        return Median(middle, -math.inf, math.inf, n)
    return Median(middle, ordered[rank - 1], ordered[n - rank], n)


def interval_rank(n: int, alpha: float) -> int:
    """The largest 1-based rank k with P(Binomial(n, 1/2) < k) ≤ ``alpha``; 0 when there is none."""
    cumulative, rank = 0.0, 0
    for k in range(n // 2 + 1):
        cumulative += math.comb(n, k) / 2**n
        if cumulative > alpha:
            break
        rank = k + 1
    return rank
