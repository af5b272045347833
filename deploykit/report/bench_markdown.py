"""A bench as Markdown, for a pull request or a CI summary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from deploykit.report.bench_model import COSTS, HEADER, BenchReport, cells, costs
from deploykit.report.bench_terminal import legend
from deploykit.report.markdown import escape


def render(report: BenchReport) -> str:
    """The report as GitHub-flavoured Markdown; every value that comes from the result is escaped."""
    parts = [f"# {escape(report.title)}", escape(report.subtitle)]
    parts += [f"> **Noise:** {escape(text)}" for text in report.warnings]
    parts += [f"> {escape(text)}" for text in report.notes]
    for point in report.points:
        ordered = sorted(report.subjects, key=lambda s: s.measured[point.name].p50.value or 0)
        rows = [(s.name, *cells(report, s, point)) for s in ordered]
        parts += [f"## {escape(point.text)}", _table(("subject", *HEADER), rows)]
        lead = report.lead(point)
        best = report.fastest(point, baselines=False)
        parts += [f"{escape(best.name)}: {escape(lead)}."] if lead and best else []
    parts += [escape(text) for text in report.int8_gains]
    rows = [(s.name, *costs(s)) for s in report.subjects]
    parts += ["## Cold start, memory, accuracy", _table(("subject", *COSTS), rows)]
    parts += [escape(text) for text in legend(report)]
    audited = [(s.name, "; ".join(s.audit) or s.what, s.effective) for s in report.subjects]
    parts += ["## What really runs", _table(("subject", "audit", "effective"), audited)]
    if report.unavailable:
        parts += ["## Not measured", _table(("what", "why", "what to do"), report.unavailable)]
    facts = [*report.facts, ("command", report.command)] if report.command else list(report.facts)
    parts += ["## Measured with", _table(("", ""), facts)]
    return "\n\n".join(parts) + "\n"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *([escape(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
