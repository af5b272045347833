"""``result.json`` of `deploykit bench`: its schema, its figures, reading and writing it.

The schema, ``deploykit.bench/1``, is published as the JSON Schema ``bench.schema.json`` beside this file. `check` reads
the part of the language that the file uses, so that nothing needs to be installed for it.

A quantile's interval is that of order statistics: ranks from the binomial distribution, with nothing assumed about the
times (David & Nagaraja, Order Statistics, 3rd ed., section 7.1). It holds for calls that do not depend on each other;
what one process does not share with the next is shown apart, as the span of the processes.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from deploykit.errors import InputError
from deploykit.output import write_text

SCHEMA = "deploykit.bench/1"
# With this many calls at least two lie above the 99th percentile with a confidence of 99 % (Wilks 1941, second order:
# P(Binomial(n, 0.01) <= 1) <= 0.01). With fewer, the figure is one outlier, or nothing.
P99_FROM = 662
_CONFIDENCE = 0.95
_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (Mapping,),
    "array": (list, tuple),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def quantile(values: Sequence[float], q: float) -> dict[str, Any]:
    """The ``q``-quantile of ``values`` with its 95 % interval; an end that so few values cannot bound is None.

    Below `P99_FROM` values a 99th percentile is None, and ``why`` says so.
    """
    ordered, n = sorted(values), len(values)
    if not n:
        raise ValueError("a quantile of no values is not defined")
    if q >= 0.99 and n < P99_FROM:
        why = f"{n:,} calls, and it takes {P99_FROM} for two of them to lie above it with 99 % confidence"
        return {"value": None, "low": None, "high": None, "n": n, "why": why}
    low, high = _ranks(n, q, (1 - _CONFIDENCE) / 2)
    at = q * (n - 1)
    below = math.floor(at)
    value = ordered[below] + (at - below) * (ordered[min(below + 1, n - 1)] - ordered[below])
    return {
        "value": _rounded(value),
        "low": _rounded(ordered[low - 1]) if low else None,
        "high": _rounded(ordered[high - 1]) if high else None,
        "n": n,
    }


def span(values: Sequence[float]) -> dict[str, Any]:
    """Median, least and most over processes: too few for an interval, enough to see whether they agree."""
    found = {"value": statistics.median(values), "least": min(values), "most": max(values)}
    return {**{key: _rounded(value) for key, value in found.items()}, "n": len(values)}


def measurement(point: str, rounds: Sequence[Mapping[str, Any]], preprocess_ms: float | None) -> dict[str, Any]:
    """One subject at one point. ``rounds`` are the worker's answers for it, each with its ``round``."""
    times = [ms for answer in rounds for ms in answer["times_ms"]]
    calls_per_s = [len(answer["times_ms"]) / answer["wall_s"] for answer in rounds]
    tokens, padded = rounds[0].get("tokens"), rounds[0].get("padded")
    return {
        "point": point,
        "p50_ms": quantile(times, 0.5),
        "p90_ms": quantile(times, 0.9),
        "p99_ms": quantile(times, 0.99),
        "items_per_s": span([rate * rounds[0]["items"] for rate in calls_per_s]),
        "tokens_per_s": span([rate * tokens for rate in calls_per_s]) if tokens else None,
        "padding": round(1 - tokens / padded, 4) if tokens and padded else None,
        "preprocess_ms": None if preprocess_ms is None else _rounded(preprocess_ms),
        "rounds": [
            {
                "round": answer["round"],
                "p50_ms": _rounded(statistics.median(answer["times_ms"])),
                "wall_s": _rounded(answer["wall_s"]),
                "times_ms": [_rounded(ms) for ms in answer["times_ms"]],
            }
            for answer in rounds
        ],
    }


def schema() -> dict[str, Any]:
    """The published JSON Schema."""
    text = resources.files("deploykit.measure").joinpath("bench.schema.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def check(data: Any, name: str = "the result") -> None:
    """`InputError` with the place of the first thing in ``data`` that is not as the schema says."""
    whole = schema()
    fault = _fault(data, whole, whole, "")
    if fault:
        raise InputError(f"{name} is no {SCHEMA}: {fault}", hint="give the file that `deploykit bench -o` wrote")


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The result in the file at ``path``; `InputError` when it is none."""
    place = Path(path)
    try:
        data = json.loads(place.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"'{place}' cannot be read: {error.strerror}", hint="give a result.json") from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"'{place}' is no JSON: {error}", hint="give the file that `deploykit bench -o` wrote"
        ) from error
    check(data, f"'{place}'")
    found: dict[str, Any] = data
    return found


def save(data: Mapping[str, Any], path: Path) -> None:
    """Check ``data`` and write it to ``path`` in one rename."""
    check(data)
    write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def _ranks(n: int, q: float, alpha: float) -> tuple[int, int]:
    """1-based ranks around the quantile, with at most ``alpha`` of the chance beyond each; 0 where there is none."""
    cumulative, low, high = 0.0, 0, 0
    for k in range(n):
        cumulative += _binomial(n, k, q)
        if cumulative <= alpha:
            low = k + 1
        if cumulative >= 1 - alpha:
            high = k + 1
            break
    return low, high


def _binomial(n: int, k: int, q: float) -> float:
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(ways + k * math.log(q) + (n - k) * math.log(1 - q))


def _rounded(value: float) -> float:
    """Six significant digits: more than a clock gives."""
    return float(f"{value:.6g}")


def _fault(data: Any, rule: Mapping[str, Any], whole: Mapping[str, Any], where: str) -> str:
    """What is wrong with ``data`` under ``rule``, in words; empty when nothing is."""
    place = where or "the document"
    if "$ref" in rule:
        return _fault(data, whole["$defs"][rule["$ref"].rpartition("/")[2]], whole, where)
    if "const" in rule and data != rule["const"]:
        return f"{place} is {data!r}, not {rule['const']!r}"
    if "enum" in rule and data not in rule["enum"]:
        return f"{place} is {data!r}, not one of {', '.join(map(str, rule['enum']))}"
    if "type" in rule and not _is(data, rule["type"]):
        return f"{place} is {type(data).__name__}, not {rule['type']}"
    if "minimum" in rule and data < rule["minimum"]:
        return f"{place} is {data}, below {rule['minimum']}"
    if isinstance(data, Mapping):
        return _fault_of_object(data, rule, whole, where)
    if isinstance(data, (list, tuple)) and "items" in rule:
        return next(
            (f for i, item in enumerate(data) if (f := _fault(item, rule["items"], whole, f"{where}[{i}]"))), ""
        )
    return ""


def _fault_of_object(data: Mapping[str, Any], rule: Mapping[str, Any], whole: Mapping[str, Any], where: str) -> str:
    known = rule.get("properties", {})
    for key in rule.get("required", ()):
        if key not in data:
            return f"{where or 'the document'} lacks '{key}'"
    for key, value in data.items():
        if key not in known and rule.get("additionalProperties") is False:
            return f"{where or 'the document'} has the unknown key '{key}'"
        if fault := _fault(value, known.get(key, {}), whole, f"{where}.{key}" if where else key):
            return fault
    return ""


def _is(data: Any, kinds: str | Sequence[str]) -> bool:
    """JSON's types; a boolean is no number, and neither are NaN and infinity."""
    for kind in [kinds] if isinstance(kinds, str) else kinds:
        if isinstance(data, bool):
            if kind == "boolean":
                return True
        elif isinstance(data, _TYPES[kind]) and not (isinstance(data, float) and not math.isfinite(data)):
            return True
    return False
