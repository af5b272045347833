"""Figures with their intervals: how sure each is, from how many examples, by which method. numpy and nothing else.

- means: Hall's transformation of the t statistic, which takes away the skewness (P. Hall, On the removal of skewness by
  transformation, J. R. Stat. Soc. B 54, 1992): losses of cosine have a long tail on one side, and a plain t interval
  ends too early there.
- percentiles: order statistics, exact for any distribution (David & Nagaraja, Order Statistics, 3rd ed., section 7.1).
- changes of an accuracy: Agresti and Min's adjusted Wald interval for matched pairs (Statistics in Medicine 24, 2005),
  which does not shrink to nothing where no example changed sides.
- everything else: the percentile bootstrap over examples, with a fixed seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

#: Below so many examples no interval is given: what it assumes cannot be seen in so few.
FEWEST = 11
SEED = 20240517
DRAWS = 2000
_TWO_SIDED, _ONE_SIDED = 0.025, 0.01


@dataclass(frozen=True)
class Figure:
    """One figure. ``low`` to ``high`` is its 95 % interval; ``lower99`` and ``upper99`` are one-sided 99 % bounds; None
    where there are too few examples. ``n`` counts the examples, ``method`` says how the interval was made.

    For a task, ``value`` is the change from ``reference`` to ``candidate``, paired by example.
    """

    name: str
    value: float
    n: int
    low: float | None = None
    high: float | None = None
    lower99: float | None = None
    upper99: float | None = None
    method: str = ""
    reference: float | None = None
    candidate: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data; what is not finite (the SQNR of equal vectors) becomes None, as JSON has no word for it."""
        found = {key: getattr(self, key) for key in self.__dataclass_fields__}
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in found.items()}


def of_mean(name: str, values: np.ndarray) -> Figure:
    """The mean of ``values`` [n]."""
    n, mean = len(values), float(values.mean())
    if n < FEWEST:
        return Figure(name, mean, n)
    deviations = values.astype(np.float64) - mean
    spread = math.sqrt(float((deviations**2).sum()) / (n - 1))
    if spread == 0:
        return Figure(name, mean, n, mean, mean, mean, mean, "all equal")
    skewness = float((deviations**3).mean()) / spread**3

    def bound(tail: float) -> float:
        return mean - spread * _hall_inverse(student_t(1 - tail, n - 1) / math.sqrt(n), skewness, n)

    low, high = bound(_TWO_SIDED), bound(1 - _TWO_SIDED)
    return Figure(name, mean, n, low, high, bound(_ONE_SIDED), bound(1 - _ONE_SIDED), "Hall's t")


def of_percentile(name: str, values: np.ndarray, share: float) -> Figure:
    """The percentile of ``values`` [n] below which ``share`` of them lie."""
    ordered = np.sort(values)
    n = len(ordered)
    value = float(np.quantile(ordered, share))

    def at(rank: int) -> float | None:
        return float(ordered[rank - 1]) if 1 <= rank <= n else None

    return Figure(
        name,
        value,
        n,
        at(lower_rank(n, share, _TWO_SIDED)),
        at(upper_rank(n, share, _TWO_SIDED)),
        at(lower_rank(n, share, _ONE_SIDED)),
        at(upper_rank(n, share, _ONE_SIDED)),
        "order statistics",
    )


def of_accuracies(name: str, reference: np.ndarray, candidate: np.ndarray) -> Figure:
    """The change, in points of 100, from ``reference`` to ``candidate``, both boolean [n]: right or wrong."""
    n = len(reference)
    before, after = 100 * float(reference.mean()), 100 * float(candidate.mean())
    if n < FEWEST:
        return Figure(name, after - before, n, reference=before, candidate=after)
    gained, lost = int((candidate & ~reference).sum()), int((reference & ~candidate).sum())
    centre = (gained - lost) / (n + 2)
    error = math.sqrt((gained + lost + 1) - (gained - lost) ** 2 / (n + 2)) / (n + 2)

    def bound(tail: float) -> float:
        return 100 * (centre + error * NormalDist().inv_cdf(tail))

    low, high = bound(_TWO_SIDED), bound(1 - _TWO_SIDED)
    ends = (low, high, bound(_ONE_SIDED), bound(1 - _ONE_SIDED))
    return Figure(name, after - before, n, *ends, "Agresti-Min", before, after)


def of_draws(name: str, value: float, n: int, draws: np.ndarray, both: tuple[float, float]) -> Figure:
    """``value`` with the interval that ``draws`` of the bootstrap give; ``both`` are the two values it compares."""
    if n < FEWEST:
        return Figure(name, value, n, reference=both[0], candidate=both[1])
    tails = (_TWO_SIDED, 1 - _TWO_SIDED, _ONE_SIDED, 1 - _ONE_SIDED)
    low, high, lower99, upper99 = (float(v) for v in np.quantile(draws, tails))
    method = f"bootstrap, {len(draws):,} draws, seed {SEED}"
    return Figure(name, value, n, low, high, lower99, upper99, method, *both)


def lower_rank(n: int, share: float, tail: float) -> int:
    """The 1-based rank of the order statistic below the percentile with confidence 1 - ``tail``; 0: none is."""
    below = np.concatenate([[0.0], _binomial_cdf(n, share)])
    return int(np.searchsorted(below, tail, side="right")) - 1


def upper_rank(n: int, share: float, tail: float) -> int:
    """The 1-based rank of the order statistic above the percentile with confidence 1 - ``tail``; n + 1: none is."""
    at_least = 1 - np.concatenate([[0.0], _binomial_cdf(n, share)])
    return int(np.argmax(at_least <= tail)) if (at_least <= tail).any() else n + 1


def student_t(share: float, degrees: int) -> float:
    """The quantile of Student's t by Cornish and Fisher's expansion (Abramowitz & Stegun 26.7.5): four digits from ten
    degrees of freedom on.
    """
    z = NormalDist().inv_cdf(share)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(z + sum(term / degrees**power for power, term in enumerate(terms, start=1)))


def _hall_inverse(x: float, skewness: float, n: int) -> float:
    """The inverse of Hall's g(w) = w + g w²/3 + g² w³/27 + g/(6n): the w for which g(w) is ``x``."""
    if abs(skewness) < 1e-9:
        return x
    inner = 1 + skewness * (x - skewness / (6 * n))
    return 3 / skewness * (math.copysign(abs(inner) ** (1 / 3), inner) - 1)


def _binomial_cdf(n: int, share: float) -> np.ndarray:
    """P(Binomial(n, ``share``) <= k) for k = 0 … n; in logarithms, since (1 - share)^n underflows."""
    k = np.arange(1, n + 1)
    steps = np.log((n - k + 1) / k) + math.log(share) - math.log1p(-share)
    logs = n * math.log1p(-share) + np.concatenate([[0.0], np.cumsum(steps)])
    return np.asarray(np.minimum(np.cumsum(np.exp(logs)), 1.0))
