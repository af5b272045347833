"""A report as one HTML file: no scripts, nothing loaded from elsewhere, light and dark, from 360 px upwards."""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape

from deploykit.report.model import (
    CANDIDATE_HEADER,
    TRIAL_HEADER,
    Report,
    Timing,
    VariantRow,
    cosine_text,
    number,
    size_text,
)
from deploykit.report.page import page, section

# The drift bar is logarithmic: from 1e-8, which float32 cannot tell from 0, to 1.
_DRIFT_DECADES = 8


def render(report: Report) -> str:
    """A complete document. Everything that comes from the bundle is escaped, and the policy allows no script."""
    sections = [
        section("Variants", _variants(report)),
        section("Candidates", _candidates(report)),
        section("Search for a partial variant", _trials(report)),
        section("Drift on real inputs", _drift(report)),
        section("Latency", _latency(report)),
        section("What really runs", _audit(report)),
        section("Refused", _refused(report)),
        section("Load it", f"<pre><code>{escape(report.usage)}</code></pre>"),
        section("Encoder", _pairs(report.facts)),
        section("Provenance", _pairs(report.provenance)),
    ]
    return page(report.title, _header(report) + "".join(sections))


def _header(report: Report) -> str:
    worst = min((v.proof.cosine_min for v in report.variants if v.proof), default=None)
    fastest = next((f for w in report.workloads() if (f := report.fastest(w))), None)
    asked = len(report.variants) + len(report.refused)
    tiles = [
        ("variants passed", f"{len(report.variants)} of {asked}", ""),
        ("worst cosine", "not proven" if worst is None else cosine_text(worst), "over all variants and shapes"),
        ("bundle", size_text(report.size), "everything needed to run it"),
    ]
    if fastest:
        variant, timing = fastest
        tiles.insert(
            1, ("fastest", f"{number(timing.p50_ms)} ms", f"{variant.name}, {timing.workload} ({timing.shape})")
        )
    cells = "".join(
        f"<div><dt>{escape(a)}</dt><dd>{escape(b)}<small>{escape(c)}</small></dd></div>" for a, b, c in tiles
    )
    return (
        f"<header><h1>{escape(report.title)}</h1><p>{escape(report.subtitle)}</p>"
        f'<p class="quiet"><code>{escape(report.location)}</code></p><dl class="tiles">{cells}</dl></header>'
    )


def _variants(report: Report) -> str:
    rows = "".join(_variant(v) for v in report.variants)
    return (
        "<table><thead><tr><th>variant<th>size<th>worst cosine<th>at<th>max error<th>cases<th>drift</tr></thead>"
        f"<tbody>{rows}</tbody></table>"
        '<p class="quiet">Every variant ran on its own engine against the reference. Drift is 1 − the worst cosine, '
        "on a logarithmic scale from 1e-8 to 1; the mark is what is allowed. "
        "Max error is relative to the largest component.</p>"
    )


def _variant(variant: VariantRow) -> str:
    badge = ' <span class="badge">default</span>' if variant.default else ""
    proof = variant.proof
    if proof is None:
        cells = _cell("worst cosine", "not proven") + "".join(
            _cell(label, "") for label in ("at", "max error", "cases")
        )
        bar = ""
    else:
        figures = {
            "worst cosine": cosine_text(proof.cosine_min),
            "at": proof.worst_at,
            "max error": f"{proof.error_max:.1e}",
            "cases": str(proof.cases),
        }
        cells = "".join(_cell(label, value) for label, value in figures.items())
        allowed = None if proof.allowed_cosine is None else 1 - proof.allowed_cosine
        bar = _drift_bar(proof.drift, allowed)
    size = _cell("size", size_text(variant.size))
    return f'<tr><th scope="row">{escape(variant.name)}{badge}</th>{size}{cells}<td data-label="drift">{bar}</td></tr>'


def _cell(label: str, value: str) -> str:
    return f'<td data-label="{escape(label)}">{escape(value)}</td>'


def _drift_bar(drift: float, allowed: float | None) -> str:
    label = f"drift {drift:.1e}" + ("" if allowed is None else f", {allowed:.1e} allowed")
    mark = "" if allowed is None else _mark(_decades(allowed))
    return _svg(label, f'<rect class="bar" width="{_decades(drift):.2f}" height="10" rx="1"/>{mark}')


def _decades(drift: float) -> float:
    """Where a drift lies on the logarithmic bar, 0 to 100."""
    if not drift > 0:
        return 0.0
    return min(100.0, max(0.0, 100 * (math.log10(drift) + _DRIFT_DECADES) / _DRIFT_DECADES))


def _candidates(report: Report) -> str:
    """Everything that was measured, and why it was taken or not."""
    if not report.candidates:
        return ""
    head = "".join(f"<th>{escape(name)}" for name in CANDIDATE_HEADER)
    rows = []
    for row in report.candidates:
        badge = ' <span class="badge">taken</span>' if row.kept else ""
        cells = "".join(_cell(*pair) for pair in list(zip(CANDIDATE_HEADER, row.cells(), strict=True))[1:])
        rows.append(f'<tr><th scope="row">{escape(row.name)}{badge}</th>{cells}</tr>')
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _trials(report: Report) -> str:
    if not report.trials:
        return ""
    head = "".join(f"<th>{escape(name)}" for name in TRIAL_HEADER)
    rows = "".join(
        f"<tr>{''.join(_cell(*pair) for pair in zip(TRIAL_HEADER, row, strict=True))}</tr>" for row in report.trials
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _drift(report: Report) -> str:
    return _pairs([(v.name, v.drift.text()) for v in report.variants if v.drift])


def _latency(report: Report) -> str:
    gains = "".join(f"<p>{escape(sentence)}</p>" for sentence in report.int8_gains)
    return "".join(_workload(report, workload) for workload in report.workloads()) + gains


def _workload(report: Report, workload: str) -> str:
    timed = [(v, t) for v in report.variants for t in v.timings if t.workload == workload]
    longest = max(t.high_ms if math.isfinite(t.high_ms) else t.p50_ms for _, t in timed)
    hardware = ", ".join(dict.fromkeys(v.hardware for v, _ in timed))
    rows = "".join(
        f'<div class="bar-row"><span>{escape(v.name)}</span>{_latency_bar(t, longest)}'
        f"<span><b>{number(t.p50_ms)} ms</b> <small>[{number(t.low_ms)}, {number(t.high_ms)}]</small></span></div>"
        for v, t in sorted(timed, key=lambda pair: pair[1].p50_ms)
    )
    counts = _span(t.blocks for _, t in timed), _span(t.calls for _, t in timed)
    return (
        f"<h3>{escape(workload)} <small>shape {escape(timed[0][1].shape)}</small></h3>{rows}"
        f'<p class="quiet">Median of {counts[0]} blocks ({counts[1]} calls) with its 95 % interval, shorter is better; '
        f"measured on hardware {escape(hardware)}.</p>"
    )


def _span(values: Iterable[int]) -> str:
    found = sorted(set(values))
    return f"{found[0]:,}" if len(found) == 1 else f"{found[0]:,} to {found[-1]:,}"


def _latency_bar(timing: Timing, longest: float) -> str:
    low, middle, high = (
        100 * min(1.0, max(0.0, ms / longest)) for ms in (timing.low_ms, timing.p50_ms, timing.high_ms)
    )
    whisker = f'<rect class="whisker" x="{low:.2f}" y="4" width="{max(high - low, 0.3):.2f}" height="2"/>'
    return _svg(timing.text(), f'<rect class="bar" width="{middle:.2f}" height="10" rx="1"/>{whisker}')


def _mark(x: float) -> str:
    return f'<rect class="whisker" x="{min(x, 99.2):.2f}" width="0.8" height="10"/>'


def _svg(label: str, shapes: str) -> str:
    return (
        f'<svg viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label="{escape(label)}">'
        f"<title>{escape(label)}</title>{shapes}</svg>"
    )


def _audit(report: Report) -> str:
    parts = []
    for variant in report.variants:
        sentences = "".join(f"<p>{escape(sentence)}</p>" for sentence in variant.audit)
        pairs = [*variant.settings, *((f"requires {label}", value) for label, value in variant.requires)]
        if sentences or pairs:
            parts.append(f"<h3>{escape(variant.name)}</h3>{sentences}{_pairs(pairs)}")
    return "".join(parts)


def _refused(report: Report) -> str:
    return "".join(
        f"<h3>{escape(r.name)}</h3><p>{escape(r.reason)}</p>"
        + (f'<p class="hint">{escape(r.hint)}</p>' if r.hint else "")
        for r in report.refused
    )


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    items = "".join(f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in pairs)
    return f'<dl class="pairs">{items}</dl>' if items else ""
