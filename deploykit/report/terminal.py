"""A report as plain text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from deploykit.report.model import (
    CANDIDATE_HEADER,
    CandidateRow,
    Report,
    VariantRow,
    cosine_text,
    number,
    size_text,
)


def render(report: Report, width: int = 100) -> str:
    """The report, at most ``width`` columns wide where words allow it; no colours."""
    parts = [f"{report.title}: {report.subtitle}", f"{report.location} ({size_text(report.size)})", ""]
    parts += [_pair(label, value, width) for label, value in report.facts]
    parts += ["", f"{len(report.variants)} variants passed; * is loaded unless you name another with @", ""]
    parts += [table(_HEADER, [_cells(v) for v in report.variants])]
    parts += _latency(report)
    parts += _details(report, width)
    if report.candidates:
        parts += ["", candidates(report.candidates)]
    if report.refused:
        parts += ["", f"{len(report.refused)} refused"]
        for refusal in report.refused:
            parts.append(_pair(refusal.name, refusal.reason, width))
            parts += [textwrap.indent(refusal.hint, "    → ")] if refusal.hint else []
    return "\n".join(parts) + "\n"


def candidates(rows: Sequence[CandidateRow]) -> str:
    """What was measured and what was taken, one line of figures each, the reasons below."""
    figures = table(CANDIDATE_HEADER[:-1], [row.cells()[:-1] for row in rows])
    return "\n".join([figures, "", *(f"{row.name}: {row.reason}" for row in rows)])


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns, two spaces apart, the header above a rule."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in (header, *rows)]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


_HEADER = ("variant", "size", "worst cosine", "at", "max error", "cases")


def _cells(variant: VariantRow) -> tuple[str, ...]:
    name = ("* " if variant.default else "  ") + variant.name
    proof = variant.proof
    if proof is None:
        return (name, size_text(variant.size), "not proven", "", "", "")
    error = f"{proof.error_max:.1e}"
    return (name, size_text(variant.size), cosine_text(proof.cosine_min), proof.worst_at, error, str(proof.cases))


def _latency(report: Report) -> list[str]:
    lines = []
    for workload in report.workloads():
        timed = [(v, t) for v in report.variants for t in v.timings if t.workload == workload]
        hardware = ", ".join(dict.fromkeys(v.hardware for v, _ in timed))
        rows = [
            (
                v.name,
                number(t.p50_ms),
                f"[{number(t.low_ms)}, {number(t.high_ms)}]",
                f"{t.blocks} blocks, {t.calls:,} calls",
            )
            for v, t in timed
        ]
        lines += ["", f"latency, {workload} (shape {timed[0][1].shape}; hardware {hardware})", ""]
        lines += [table(("variant", "p50 ms", "95 % interval", "n"), rows)]
    return lines + (["", *report.int8_gains] if report.int8_gains else [])


def _details(report: Report, width: int) -> list[str]:
    lines = []
    for variant in report.variants:
        pairs = [("drift", variant.drift.text())] if variant.drift else []
        pairs += [("on a device", sentence) for sentence in variant.devices]
        pairs += [("runs as", sentence) for sentence in variant.audit]
        pairs += [("settings", "; ".join(f"{k} = {v}" for k, v in variant.settings))] if variant.settings else []
        pairs += [("requires", "; ".join(f"{k} = {v}" for k, v in variant.requires))] if variant.requires else []
        if pairs:
            lines += ["", variant.name, *(_pair(label, value, width) for label, value in pairs)]
    return lines


def _pair(label: str, value: str, width: int) -> str:
    first = f"  {label + ':':<14} "
    return (
        textwrap.fill(value, width, initial_indent=first, subsequent_indent=" " * len(first), break_long_words=False)
        or first
    )
