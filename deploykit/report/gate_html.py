"""A gate as one HTML file: no scripts, nothing loaded from elsewhere, light and dark, from 360 px upwards."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape as _escape
from typing import TYPE_CHECKING

from deploykit.report.page import page, section

if TYPE_CHECKING:
    from deploykit.gate.result import AaResult, Identity, Result, Row, Unjudged

_LOOKS = {"PASS": "pass", "FAIL": "fail", "ERROR": "fail"}


def plain(text: str) -> str:
    """Text without what turns the direction of writing, or is no character."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def escape(text: str) -> str:
    """`plain` text for HTML."""
    return _escape(plain(text))


def render(result: Result) -> str:
    """A complete document. Everything that comes from a bundle is escaped, and the policy allows no script."""
    tiles = [
        ("verdict", result.status, f"{result.seconds:.0f} s"),
        ("rows", _counts(result), result.data),
        ("machine", str(result.hardware["id"]), f"{result.hardware['cpu']}, {result.hardware['cores']} cores"),
    ]
    notes = "".join(f"<p>{escape(text)}</p>" for text in (*result.skipped, *result.notes))
    how = [("budget", result.budget), ("data", result.data), ("seed", str(result.seed)), ("noise", result.noise)]
    sections = [
        section("What was judged", _rows(result.rows) + notes),
        section("Changes with their intervals", _changes(result.rows)),
        section("Candidate", _pairs(_identity(result.candidate))),
        section("Baseline", _pairs(_identity(result.baseline))),
        section("How", _pairs(how)),
        section("Every process", _processes(result.rows)),
    ]
    title = f"{result.status}: {result.candidate.name}"
    header = _header(title, f"against {result.baseline.name}", tiles)
    return page(plain(title), header + "".join(sections), "gate.css")


def render_unjudged(failed: Unjudged) -> str:
    """The page of a gate that could not run: what is missing, and the way out."""
    against = f"against {failed.baseline}" if failed.baseline else ""
    body = f"<p>{escape(failed.message)}</p>"
    body += f'<p class="hint">{escape(failed.hint)}</p>' if failed.hint else ""
    title = f"ERROR: {failed.candidate}"
    return page(
        plain(title), _header(title, against, [("verdict", "ERROR", failed.error)]) + section("Why", body), "gate.css"
    )


def render_aa(result: AaResult) -> str:
    """The gate's own noise: a bundle against itself."""
    tiles = [
        ("false alarms", f"{result.count('FAIL')} of {result.runs}", f"below {100 * result.upper:.0f} % (95 %)"),
        ("inconclusive", f"{result.count('INCONCLUSIVE')} of {result.runs}", ""),
        ("half-width", f"±{100 * result.half_width:.1f} %", "median over runs and metrics"),
    ]
    found = [
        (
            str(index + 1),
            c.metric,
            _badge(c.status),
            escape(f"{100 * c.change:+.1f} %"),
            escape(f"±{100 * c.half_width:.1f} %"),
            f"{c.pairs} ({c.stage})",
        )
        for index, run in enumerate(result.comparisons)
        for c in run
    ]
    table = _table(("run", "metric", "verdict", "change", "half-width", "pairs"), found)
    title = f"The gate's own noise: {result.subject.name}"
    body = section("Every run", table) + section("How", _pairs([("budget", result.budget), ("noise", result.noise)]))
    return page(plain(title), _header(title, result.sentence, tiles) + body, "gate.css")


def _header(title: str, subtitle: str, tiles: Iterable[tuple[str, str, str]]) -> str:
    cells = "".join(
        f'<div class="{_LOOKS.get(b, "")}"><dt>{escape(a)}</dt><dd>{escape(b)}<small>{escape(c)}</small></dd></div>'
        for a, b, c in tiles
    )
    return f'<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p><dl class="tiles">{cells}</dl></header>'


def _counts(result: Result) -> str:
    passed = sum(row.status == "PASS" for row in result.rows)
    return f"{passed} of {len(result.rows)} passed"


def _rows(rows: Sequence[Row]) -> str:
    """The rows as a table; where to look stands below the sentence."""
    found = []
    for row in rows:
        look = f'<p class="hint">{escape(row.look)}</p>' if row.look and row.status != "PASS" else ""
        found.append((row.name, _badge(row.status), escape(row.limit), f"<div>{escape(row.sentence)}{look}</div>"))
    return _table(("what", "verdict", "limit", "found"), found)


def _changes(rows: Sequence[Row]) -> str:
    """One bar for each paired change: its interval, its median, and zero in the middle."""
    shown = [row for row in rows if "half_width" in row.figures]
    if not shown:
        return ""
    values = [abs(v) for row in shown for v in _span(row) if math.isfinite(v)]
    widest = max([*values, 0.01])
    bars = "".join(
        f'<div class="bar-row"><span>{escape(row.name)}</span>{_interval(row, widest)}'
        f"<span><b>{escape(_percent(_span(row)[1]))}</b> <small>{escape(_interval_text(row))}</small></span></div>"
        for row in shown
    )
    return f'{bars}<p class="quiet">Change from baseline to candidate, less is better; the line in the middle is 0.</p>'


def _span(row: Row) -> tuple[float, float, float]:
    low, middle, high = (float(row.figures[key]) for key in ("low", "change", "high"))
    return low, middle, high


def _interval(row: Row, widest: float) -> str:
    low, middle, high = (50 + 50 * max(-1.0, min(1.0, value / widest)) for value in _span(row))
    label = escape(f"{row.name} {_percent(_span(row)[1])} {_interval_text(row)}")
    return (
        f'<svg viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label="{label}"><title>{label}</title>'
        f'<rect class="bar" x="{low:.2f}" width="{max(high - low, 0.3):.2f}" y="2" height="6"/>'
        f'<rect class="whisker" x="{min(middle, 99.4):.2f}" width="0.6" height="10"/>'
        '<rect class="zero" x="49.9" width="0.2" height="10"/></svg>'
    )


def _interval_text(row: Row) -> str:
    low, _, high = _span(row)
    return f"[{_percent(low)}, {_percent(high)}], {row.figures['pairs']} pairs"


def _percent(value: float) -> str:
    return f"{100 * value:+.1f} %" if math.isfinite(value) else ("+∞" if value > 0 else "-∞")


def _processes(rows: Sequence[Row]) -> str:
    """Every value that decided, behind a click."""
    parts = []
    for row in rows:
        key = next((k for k in ("ms", "mib") if isinstance(row.figures.get(f"candidate_{k}"), list)), "")
        if not key:
            continue
        pairs = zip(row.figures[f"baseline_{key}"], row.figures[f"candidate_{key}"], strict=True)
        found = [(str(i + 1), f"{before:.5g}", f"{after:.5g}") for i, (before, after) in enumerate(pairs)]
        unit = {"ms": "ms", "mib": "MiB"}[key]
        table = _table(("pair", f"baseline, {unit}", f"candidate, {unit}"), found)
        parts.append(f"<details><summary>{escape(row.name)}</summary>{table}</details>")
    return "".join(parts)


def _identity(side: Identity) -> list[tuple[str, str]]:
    software = ", ".join(f"{name} {version}" for name, version in side.software.items())
    facts = [("bundle", side.name), ("digest", side.digest), ("runs", side.runs), ("Python", side.python)]
    return [*facts, ("software", software)]


def _badge(status: str) -> str:
    return f'<span class="badge {_LOOKS.get(status, "undecided")}">{escape(status)}</span>'


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of rows whose first cell is text and whose others are HTML already."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = []
    for row in rows:
        cells = "".join(
            f'<td data-label="{escape(name)}">{cell}</td>' for name, cell in zip(header[1:], row[1:], strict=True)
        )
        body.append(f'<tr><th scope="row">{escape(row[0])}</th>{cells}</tr>')
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    items = "".join(f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in pairs if value)
    return f'<dl class="pairs">{items}</dl>' if items else ""
