"""A comparison as plain text for a terminal, without control characters: names may come from anybody's bundle."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator

from deploykit.drift.comparison import Drift
from deploykit.drift.intervals import Figure
from deploykit.drift.run import Result
from deploykit.drift.where import Where
from deploykit.report.model import clean
from deploykit.report.terminal import table

_WHERE_ROWS = 5
_FIGURES = {
    "drift": "drift (1 - mean cosine)",
    "cosine_mean": "mean cosine",
    "cosine_p1": "1st percentile of the cosine",
    "cosine_min": "smallest cosine",
    "sqnr_db": "SQNR, dB",
    "knn_overlap_10": "10 nearest kept, in its own space",
    "cross_overlap_10": "10 nearest kept, asked in the reference's index",
}
_TASKS = {
    "knn_accuracy": "kNN accuracy, 10 votes, leave one out",
    "probe_frozen": "linear probe fitted on the reference",
    "probe_refitted": "linear probe fitted on each",
    "spearman": "Spearman x 100 of the scored pairs",
}


def render(result: Result, width: int = 100) -> str:
    """The whole comparison, at most ``width`` columns wide where words allow it; no colours."""
    parts = [*_head(result, width), "", *_figures(result.drift)]
    parts += [*_tasks(result.drift), *_methods(result.drift, width), *_worst(result.drift, width)]
    parts += [*_sizes(result), *_where(result, width), *_verdict(result, width)]
    return clean("\n".join(parts)) + "\n"


def _head(result: Result, width: int) -> Iterator[str]:
    drift = result.drift
    yield f"{result.candidate.name} against {result.reference.name}"
    over = f" of {result.data}" if result.data else ""
    yield f"{drift.n:,} inputs{over}, {drift.dim} dimensions"
    yield ""
    for word, side in (("reference", result.reference), ("candidate", result.candidate)):
        yield textwrap.fill(f"  {word}: {side.runs}", width, subsequent_indent="    ")
    for note in drift.notes:
        yield textwrap.fill(f"  note: {note}", width, subsequent_indent="    ")


def _figures(drift: Drift) -> Iterator[str]:
    rows = [
        (label, _number(figure.name, figure.value), _interval(figure), f"{figure.n:,}")
        for name, label in _FIGURES.items()
        if (figure := drift.figure(name))
    ]
    yield table(("figure", "value", "95 % interval", "n"), rows)


def _tasks(drift: Drift) -> Iterator[str]:
    rows = [
        (
            label,
            f"{figure.reference:.2f}",
            f"{figure.candidate:.2f}",
            f"{_zero(figure.value):+.2f}",
            _interval(figure),
            f"{figure.n:,}",
        )
        for name, label in _TASKS.items()
        if (figure := drift.figure(name))
    ]
    if rows:
        yield ""
        yield table(("task, points of 100", "reference", "candidate", "change", "95 % interval", "n"), rows)


def _methods(drift: Drift, width: int) -> Iterator[str]:
    methods = dict.fromkeys(figure.method for figure in drift.figures if figure.method not in ("", "all equal"))
    if methods:
        yield ""
        cut = any((figure.low is None) != (figure.high is None) for figure in drift.figures)
        unknown = " A ? stands where there are too few inputs for that end." if cut else ""
        yield textwrap.fill(f"Intervals: {'; '.join(methods)}. Changes are paired by input.{unknown}", width)


def _worst(drift: Drift, width: int) -> Iterator[str]:
    yield ""
    yield f"the {len(drift.worst)} inputs that moved most"
    for worst in drift.worst:
        line = f"  {worst.cosine:.5f}  #{worst.index}  {worst.input}".rstrip()
        yield line if len(line) <= width else line[: width - 1].rstrip("…").rstrip() + "…"


def _sizes(result: Result) -> Iterator[str]:
    drift = result.drift
    if len(drift.buckets) < 2:
        return
    rows = [(b.size, f"{b.n:,}", f"{b.mean:.5f}", f"{b.min:.5f}") for b in drift.buckets]
    yield ""
    yield table((result.size or "size", "n", "mean cosine", "smallest"), rows)
    if drift.odd_size:
        odd = drift.odd_size
        yield f"worst single size: {odd.size} (n {odd.n:,}, mean cosine {odd.mean:.5f}, smallest {odd.min:.5f})"


def _where(result: Result, width: int) -> Iterator[str]:
    if result.where_note:
        yield ""
        yield textwrap.fill(f"note: {result.where_note}", width, subsequent_indent="  ")
    if result.where is None:
        return
    found: Where = result.where
    yield ""
    yield textwrap.fill(found.sentence, width)
    rows = [
        (
            " ".join(layer.name.split()),
            _decibels(layer.sqnr_db),
            "" if layer.drop_db is None else _decibels(layer.drop_db),
        )
        for layer in found.layers[:_WHERE_ROWS]
    ]
    if rows:
        yield ""
        yield table(("layer, most noise added first", "SQNR dB", "drop dB"), rows)
    for note in found.notes:
        yield textwrap.fill(f"note: {note}", width, subsequent_indent="  ")


def _verdict(result: Result, width: int) -> Iterator[str]:
    judged = result.verdict
    if judged is None:
        return
    yield ""
    for term in judged.terms:
        first = f"{term.status:<12}  "
        yield textwrap.fill(term.sentence, width, initial_indent=first, subsequent_indent=" " * len(first))
    if judged.left_out:
        yield f"not judged here: {', '.join(judged.left_out)}"
    yield f"{judged.status}: {result.candidate.name}"


def _interval(figure: Figure) -> str:
    if figure.low is None and figure.high is None:
        return ""
    low, high = (("?" if end is None else _number(figure.name, end)) for end in (figure.low, figure.high))
    return f"[{low}, {high}]"


def _number(name: str, value: float) -> str:
    if name in _TASKS:
        return f"{_zero(value):+.2f}"
    if name == "sqnr_db":
        return _decibels(value)
    if name == "drift":
        return f"{value:.5f}" if value >= 1e-4 or value == 0 else f"{value:.2e}"
    return f"{value:.4f}" if name.endswith("overlap_10") else f"{value:.6f}"


def _zero(value: float) -> float:
    """Without the sign that rounding leaves on nothing."""
    return round(value, 2) + 0.0


def _decibels(value: float) -> str:
    return f"{value:.1f}" if math.isfinite(value) else ("no loss" if value > 0 else "not finite")
