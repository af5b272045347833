"""From raw rounds to figures, and from figures to a page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from deploykit.measure.stats import Median, interval_rank, median

CONFIDENCE = 0.95


def interval(values: Sequence[float]) -> dict[str, float | int]:
    """Median with its order-statistic interval; with too few values for 95 % the range, and the confidence it has."""
    found, confidence = median(values, CONFIDENCE), CONFIDENCE
    if interval_rank(len(values), (1 - CONFIDENCE) / 2) == 0:
        found = Median(found.value, min(values), max(values), len(values))
        confidence = 1 - 2 ** (1 - len(values))
    return {"median": found.value, "low": found.low, "high": found.high, "n": found.n, "confidence": confidence}


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float | int]:
    """Median over rounds of ours / theirs, each pair taken from the same round."""
    return interval([a / b for a, b in zip(ours, theirs, strict=True)])


def quality(vectors: np.ndarray, reference: np.ndarray, scores: np.ndarray | None) -> dict[str, float]:
    """Cosine to the reference row by row; with ``scores``, rows come in pairs and Spearman x 100 is added."""
    unit, unit_reference = _unit(vectors), _unit(reference)
    cosine = np.sum(unit * unit_reference, axis=1)
    facts = {
        "cosine_mean": float(cosine.mean()),
        "cosine_p1": float(np.percentile(cosine, 1)),
        "cosine_min": float(cosine.min()),
    }
    if scores is not None:
        facts["spearman_x100"] = 100 * spearman(np.sum(unit[0::2] * unit[1::2], axis=1), scores)
    return facts


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation; ties share their mean rank."""
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray(((last - counts + last - 1) / 2)[inverse])


def _unit(vectors: np.ndarray) -> np.ndarray:
    rows = vectors.astype(np.float64)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def markdown(result: dict[str, Any]) -> str:
    """The page: what was measured where, one row per contestant, and what ours makes of each peer."""
    best = result["best_peer"]
    rows = [
        "# Text encoders on a CPU, side by side",
        "",
        "Written by the command below; every figure was measured in that one run.",
        "",
        *_conditions(result),
        "",
        "| contestant | texts/s | tokens/s | single query p50, ms | cosine to torch fp32: mean, p1 | STS-B dev |",
        "|---|---|---|---|---|---|",
        *(_row(arm) for arm in _ranked(result["arms"])),
        "",
        f"Brackets: order-statistic interval of the median over the rounds, {_confidence(result['arms']):.0%} or more. "
        f"STS-B dev: Spearman x 100 on {result['workload']['pairs']:,} pairs (– where none were given).",
        "",
        f"## {result['ours']} against each peer",
        "",
        "Ratios are taken round by round; above 1 deploykit is ahead in both columns.",
        "",
        "| peer | throughput | single query |",
        "|---|---|---|",
        *(f"| {p} | {_times(r['throughput'])} | {_times(r['latency'])} |" for p, r in result["against"].items()),
        "",
        f"Best peer by throughput: **{best['throughput']}**; by single query: **{best['latency']}** "
        f"(among those with a mean cosine of at least {result['faithful']} to torch fp32).",
        "",
        "## Versions",
        "",
        *(f"- {arm['name']}: {_versions(arm)}" for arm in result["arms"] if "error" not in arm),
        *_failures(result["arms"]),
    ]
    return "\n".join(rows) + "\n"


def _conditions(result: dict[str, Any]) -> list[str]:
    workload, machine = result["workload"], result["machine"]
    p10, p50, p90 = (workload[f"tokens_p{p}"] for p in (10, 50, 90))
    return [
        f"- **Machine** {machine['cpu']}, {result['threads']} threads for every contestant, "
        f"hardware id {machine['id']}, load before the start {result['load_before']:.2f}",
        f"- **Texts** {workload['texts']:,} lines of {workload['file']}, "
        f"{workload['tokens']:,} tokens without padding; "
        f"{p10} / {p50} / {p90} tokens at the 10th / 50th / 90th percentile",
        f"- **Queries** {workload['queries_per_round']} a round, one at a time, "
        f"{workload['query_tokens_p50']} tokens at the median",
        f"- **Rounds** {result['rounds']}, contestants in an order drawn anew each round (seed {result['seed']}), "
        "one awake at a time",
        f"- **Command** `{result['command']}`",
    ]


def _ranked(arms: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted((a for a in arms if "error" not in a), key=lambda a: -a["texts_per_s"]["median"])


def _row(arm: dict[str, Any]) -> str:
    facts = arm["quality"]
    task = f"{facts['spearman_x100']:.2f}" if "spearman_x100" in facts else "–"
    return (
        f"| {arm['name']} | {_figure(arm['texts_per_s'], 0)} | {arm['tokens_per_s']['median']:,.0f} | "
        f"{_figure(arm['query_p50_ms'], 2)} | {facts['cosine_mean']:.5f}, {facts['cosine_p1']:.5f} | {task} |"
    )


def _figure(figure: dict[str, Any], digits: int) -> str:
    return f"{figure['median']:.{digits}f} [{figure['low']:.{digits}f}, {figure['high']:.{digits}f}]"


def _times(figure: dict[str, Any]) -> str:
    return f"{figure['median']:.2f}x [{figure['low']:.2f}, {figure['high']:.2f}], {figure['n']} rounds"


def _confidence(arms: Iterable[dict[str, Any]]) -> float:
    return math.floor(100 * min(float(a["texts_per_s"]["confidence"]) for a in arms if "error" not in a)) / 100


def _versions(arm: dict[str, Any]) -> str:
    chosen = f"; batch size {arm['batch_size']}" if arm["batch_size"] else ""
    chosen += f"; runs {arm['runs']}" if arm["runs"] else ""
    return ", ".join(f"{name} {version}" for name, version in arm["versions"].items()) + chosen


def _failures(arms: Iterable[dict[str, Any]]) -> list[str]:
    failed = [f"- {a['name']}: {a['error']}" for a in arms if "error" in a]
    return ["", "## Did not run", "", *failed] if failed else []
