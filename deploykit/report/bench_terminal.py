"""A bench as plain text for a terminal."""

from __future__ import annotations

import textwrap

from deploykit.report.bench_model import COSTS, BenchReport, PointRow, costs, p99_reasons
from deploykit.report.model import number
from deploykit.report.terminal import table

# The other forms and the JSON have more: every interval, padding, preprocessing.
_HEADER = ("subject", "p50 ms", "rounds", "p90", "p99", "items/s", "tokens/s", "n", "speed")


def render(report: BenchReport, width: int = 100) -> str:
    """The report; no colours. Tables are as wide as they need, prose keeps to ``width``."""
    parts = [report.title, report.subtitle]
    parts += [_prose(f"warning: {text}", width) for text in report.warnings]
    parts += [_prose(f"note: {text}", width) for text in report.notes]
    for point in report.points:
        parts += ["", point.text, "", _point(report, point)]
    parts += ["", *(_prose(text, width) for text in report.int8_gains)] if report.int8_gains else []
    rows = [(subject.name, *costs(subject)) for subject in report.subjects]
    parts += ["", "cold start, memory, accuracy", "", table(("subject", *COSTS), rows), ""]
    parts += [_prose(text, width) for text in legend(report)]
    if report.unavailable:
        parts += ["", "not measured"]
        for name, reason, hint in report.unavailable:
            parts.append(_prose(f"{name}: {reason}", width, "  "))
            parts += [textwrap.indent(hint, "    → ")] if hint else []
    parts += ["", *(_prose(f"{label}: {value}", width) for label, value in report.facts)]
    return "\n".join(parts) + "\n"


def legend(report: BenchReport) -> list[str]:
    """How to read the figures."""
    against = f"; speed is against {report.against}, round by round" if report.against else ""
    return [
        "Quantiles are over all calls, with 95 % intervals of order statistics; n is calls in processes. Rounds are "
        "the lowest and the highest median of a process. Rates, start-up and memory are medians of the processes "
        "[least, most]; tokens are useful ones, without padding"
        f"{against}.",
        *p99_reasons(report),
    ]


def _point(report: BenchReport, point: PointRow) -> str:
    rows = []
    for subject in sorted(report.subjects, key=lambda s: s.measured[point.name].p50.value or 0):
        m = subject.measured[point.name]
        shares = ["–" if q.value is None else number(q.value) for q in (m.p90, m.p99)]
        rates = [number(m.items.value), "–" if m.tokens is None else number(m.tokens.value)]
        rows.append(
            (
                subject.name,
                m.p50.text(),
                m.between(),
                *shares,
                *rates,
                f"{m.p50.n:,}",
                report.ratio(subject, point) or "–",
            )
        )
    return table(_HEADER, rows)


def _prose(text: str, width: int, indent: str = "") -> str:
    return textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent + "  ", break_long_words=False)
