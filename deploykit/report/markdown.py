"""A report as Markdown, for a pull request or a CI summary."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from deploykit.report.model import CANDIDATE_HEADER, TRIAL_HEADER, Report, VariantRow, cosine_text, number, size_text

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~])")


def render(report: Report) -> str:
    """The report as GitHub-flavoured Markdown; every value that comes from the bundle is escaped."""
    parts = [
        f"# {escape(report.title)}",
        f"{escape(report.subtitle)}. {size_text(report.size)} in {escape(report.location)}.",
        "## Variants",
        _table(("variant", "size", "worst cosine", "at", "max error", "cases"), map(_cells, report.variants)),
        "\\* is loaded unless another is named.",
        *_drift(report),
        *_latency(report),
        *_audit(report),
    ]
    if report.candidates:
        cells = ([escape(cell) for cell in row.cells()] for row in report.candidates)
        parts += ["## Candidates", _table(CANDIDATE_HEADER, cells)]
    if report.trials:
        parts += [
            "## Search for a partial variant",
            _table(TRIAL_HEADER, [[escape(cell) for cell in row] for row in report.trials]),
        ]
    if report.refused:
        rows = [(escape(r.name), escape(r.reason), escape(r.hint)) for r in report.refused]
        parts += ["## Refused", _table(("variant", "why", "what to do"), rows)]
    parts += ["## Load it", f"```python\n{_fenced(report.usage)}\n```"]
    pairs = [(escape(label), escape(value)) for label, value in (*report.facts, *report.provenance)]
    parts += ["## Provenance", _table(("", ""), pairs)]
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _cells(variant: VariantRow) -> tuple[str, ...]:
    name = escape(variant.name) + (" \\*" if variant.default else "")
    if variant.proof is None:
        return (name, size_text(variant.size), "not proven", "", "", "")
    proof = variant.proof
    figures = (cosine_text(proof.cosine_min), escape(proof.worst_at), f"{proof.error_max:.1e}", str(proof.cases))
    return (name, size_text(variant.size), *figures)


def _drift(report: Report) -> list[str]:
    rows = [(escape(v.name), escape(v.drift.text())) for v in report.variants if v.drift]
    parts = ["## Drift", _table(("variant", "on real inputs"), rows)] if rows else []
    rows = [(escape(v.name), escape(sentence)) for v in report.variants for sentence in v.devices]
    return parts + (["## On devices", _table(("variant", "its self-test there"), rows)] if rows else [])


def _latency(report: Report) -> list[str]:
    parts = ["## Latency"] if report.workloads() else []
    for workload in report.workloads():
        timed = [(v, t) for v in report.variants for t in v.timings if t.workload == workload]
        rows = [
            (
                escape(v.name),
                number(t.p50_ms),
                f"{number(t.low_ms)} to {number(t.high_ms)}",
                f"{t.blocks} / {t.calls:,}",
                v.hardware,
            )
            for v, t in timed
        ]
        header = ("variant", "p50 ms", "95 % interval", "n (blocks / calls)", "hardware")
        parts += [f"**{escape(workload)}**, shape {timed[0][1].shape}", _table(header, rows)]
    return parts + [escape(sentence) for sentence in report.int8_gains]


def _audit(report: Report) -> list[str]:
    rows = [
        (escape(v.name), escape("; ".join(v.audit)), escape("; ".join(f"{k} = {x}" for k, x in v.settings)))
        for v in report.variants
    ]
    return ["## What really runs", _table(("variant", "audit", "settings"), rows)] if rows else []


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _fenced(text: str) -> str:
    return text.replace("```", "'''")
