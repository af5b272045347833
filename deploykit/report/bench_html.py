"""A bench as one HTML file: no scripts, nothing loaded from elsewhere, light and dark, from 360 px upwards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from deploykit.report import bench_plots as plots
from deploykit.report.bench_model import (
    COSTS,
    DRIFT_FLOOR,
    HEADER,
    BenchReport,
    PointRow,
    SubjectRow,
    cells,
    costs,
    drift_text,
)
from deploykit.report.bench_plots import Place, Series
from deploykit.report.bench_terminal import legend
from deploykit.report.model import number
from deploykit.report.page import page, section


def render(report: BenchReport) -> str:
    """A complete document. Everything that comes from the result is escaped, and the policy allows no script."""
    sections = [
        section("Latency against batch", _against_batch(report, "latency")),
        section("Throughput", _against_batch(report, "throughput")),
        section("Accuracy against latency", _pareto(report)),
        section("Drift by size of the input", _drift(report)),
        section("Every figure", _figures(report)),
        section("Cold start, memory, accuracy", _costs(report)),
        section("What really runs", _audit(report)),
        section("Not measured", _unavailable(report)),
        section("Measured with", _facts(report)),
    ]
    return page(report.title, _header(report) + "".join(sections), "bench.css")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column heads its rows; on narrow screens every cell brings its header along."""
    lines = []
    for row in rows:
        rest = "".join(
            f'<td data-label="{escape(name)}">{_with_small_interval(cell)}</td>'
            for name, cell in zip(header[1:], row[1:], strict=True)
        )
        lines.append(f'<tr><th scope="row">{escape(row[0])}</th>{rest}</tr>')
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _with_small_interval(cell: str) -> str:
    """``1.72 [1.69, 1.79]`` with the interval in small print."""
    value, bracket, interval = cell.partition(" [")
    if not bracket or not cell.endswith("]"):
        return escape(cell)
    return f"<span>{escape(value)} <small>[{escape(interval)}</small></span>"


def figure(caption: str, drawing: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A plot with its caption, and the same figures as a table behind a click."""
    return (
        f"<figure><figcaption>{escape(caption)}</figcaption>{drawing}"
        f"<details><summary>as a table</summary>{table(header, rows)}</details></figure>"
    )


def legend_of(subjects: Iterable[tuple[str, int, bool]]) -> str:
    """What each line and marker of the page means; ``(name, style, dashed)`` each."""
    items = "".join(f"<li>{plots.swatch(style, dashed)}{escape(name)}</li>" for name, style, dashed in subjects)
    return f'<ul class="legend">{items}</ul>'


def _header(report: BenchReport) -> str:
    tiles = []
    for point in dict.fromkeys((report.points[0], report.points[-1])):
        best = report.fastest(point, baselines=False)
        if best is not None:
            p50 = best.measured[point.name].p50
            said, lead = best.name, report.lead(point)
            tiles.append(
                (f"fastest at {_short(point)}", f"{number(p50.value or 0)} ms", f"{said}; {lead}" if lead else said)
            )
    quickest = report.fastest(report.points[0], baselines=False)
    if quickest is not None and quickest.accuracy:
        drift = quickest.accuracy
        tiles.append(
            (f"drift of {quickest.name}", drift_text(drift.drift), drift.text().partition(" (")[2].rstrip(")"))
        )
    tiles.append(("noise", "poor" if report.warnings else "quiet", report.fact("noise")))
    cells_ = "".join(
        f"<div><dt>{escape(a)}</dt><dd>{escape(b)}<small>{escape(c)}</small></dd></div>" for a, b, c in tiles
    )
    said = "".join(f'<p class="warning"><b>Noise:</b> {escape(text)}</p>' for text in report.warnings)
    said += "".join(f'<p class="quiet">{escape(text)}</p>' for text in (*report.notes, *report.int8_gains))
    return (
        f"<header><h1>{escape(report.title)}</h1><p>{escape(report.subtitle)}</p>"
        f'<dl class="tiles">{cells_}</dl>{said}</header>'
    )


def _against_batch(report: BenchReport, what: str) -> str:
    """One plot for each length and concurrency: p50 in ms, or items per second, over the batch."""
    drawn = []
    for index, (group, points) in enumerate(report.groups().items()):
        series = [_series(report, s, points, what) for s in report.subjects]
        batches = [float(p.batch) for p in points]
        x = plots.Axis("batch", batches[0] / 1.2, batches[-1] * 1.2, tuple(batches))
        values = [v for one in series for p in one.places for v in (p.y, p.low, p.high) if v]
        y = plots.axis("p50 ms" if what == "latency" else "items/s", values)
        better = "lower" if what == "latency" else "higher"
        described = f"{len(series)} subjects over {len(points)} batch sizes, {group}; both axes are logarithmic"
        drawing = plots.lines(
            f"{what}-{index}", f"{what.capitalize()}, {group}", f"{described}; {better} is better", series, x, y
        )
        rows = [(s.name, *(_cell(s, p, what) for p in points)) for s in report.subjects]
        header = ("subject", *(f"batch {p.batch}" for p in points))
        drawn.append(figure(f"{group}; {better} is better", drawing, header, rows))
    keys = legend_of(_styles(report)) + f'<div class="plots">{"".join(drawn)}</div>'
    bars = "the 95 % interval" if what == "latency" else "the least and the most of the processes"
    return keys + f'<p class="quiet">Dashed lines are baselines; the bar through a marker is {bars}.</p>'


def _series(report: BenchReport, subject: SubjectRow, points: Sequence[PointRow], what: str) -> Series:
    places = []
    for point in points:
        m = subject.measured[point.name]
        if what == "latency":
            places.append(Place(point.batch, m.p50.value or 0, m.p50.low, m.p50.high))
        else:
            places.append(Place(point.batch, m.items.value, m.items.least, m.items.most))
    return Series(subject.name, report.subjects.index(subject), subject.baseline, tuple(places))


def _cell(subject: SubjectRow, point: PointRow, what: str) -> str:
    m = subject.measured[point.name]
    return m.p50.text() if what == "latency" else m.items.text()


def _pareto(report: BenchReport) -> str:
    """Drift over p50 at the smallest and the largest point, with the frontier."""
    known = [s for s in report.subjects if s.accuracy]
    if len(known) < 2:
        return ""
    drawn = []
    for index, point in enumerate(dict.fromkeys((report.points[0], report.points[-1]))):
        front = [s.name for s in report.frontier(point)]
        places = {s.name: Place(s.measured[point.name].p50.value or 0, _floored(s)) for s in known}
        series = [Series(s.name, report.subjects.index(s), s.baseline, (places[s.name],)) for s in known]
        x = plots.axis("p50 ms", [p.x for p in places.values()], pad=1.35)
        y = plots.axis("drift", [*(p.y for p in places.values()), DRIFT_FLOOR], pad=3, text=plots.power)
        title = f"Drift against latency, {point.text}"
        described = f"On the Pareto frontier, from the fastest: {', '.join(front)}. Both axes are logarithmic."
        drawing = plots.scatter(f"pareto-{index}", title, described, series, front, x, y)
        ordered = sorted(known, key=lambda s: places[s.name].x)
        rows = [
            (
                s.name,
                s.measured[point.name].p50.text(),
                s.accuracy.text() if s.accuracy else "",
                "yes" if s.name in front else "no",
            )
            for s in ordered
        ]
        drawn.append(figure(point.text, drawing, ("subject", "p50 ms", "drift", "on the frontier"), rows))
    said = (
        "Nearer to the bottom left is better. Ringed and named are those that no other beats in both: the Pareto "
        "frontier. Drift is 1 − cosine to fp32, drawn from 1e-08, below which float32 cannot tell it from none; the "
        "table says on which inputs."
    )
    keys = legend_of(_styles(report))
    return f'{keys}<div class="plots">{"".join(drawn)}</div><p class="quiet">{said}</p>'


def _drift(report: BenchReport) -> str:
    """How the drift is spread over sizes of inputs, for every subject that has figures."""
    drawn = []
    for index, subject in enumerate(report.subjects):
        groups = [(b.size, max(DRIFT_FLOOR, 1 - b.mean), max(DRIFT_FLOOR, 1 - b.worst)) for b in subject.sizes]
        if not groups or max(worst for _, _, worst in groups) <= DRIFT_FLOOR:
            continue
        short = [(_compact(name), mean, worst) for name, mean, worst in groups]
        described = f"Mean drift of {len(groups)} groups of inputs by size, and the worst input of each."
        drawing = plots.bars(f"drift-{index}", f"Drift of {subject.name} by size", described, short, "drift")
        rows = [(b.size, f"{b.n:,}", drift_text(1 - b.mean), drift_text(1 - b.worst)) for b in subject.sizes]
        drawn.append(figure(subject.name, drawing, ("size", "inputs", "mean drift", "worst"), rows))
    if not drawn:
        return ""
    said = "Bars are the mean drift of the inputs of a size, the line above them is the worst input; logarithmic."
    return f'<div class="plots">{"".join(drawn)}</div><p class="quiet">{said}</p>'


def _figures(report: BenchReport) -> str:
    parts = []
    for point in report.points:
        ordered = sorted(report.subjects, key=lambda s: s.measured[point.name].p50.value or 0)
        rows = [(s.name, *cells(report, s, point)) for s in ordered]
        opened = " open" if point in (report.points[0], report.points[-1]) else ""
        inside = table(("subject", *HEADER), rows)
        parts.append(f'<details class="point"{opened}><summary>{escape(point.text)}</summary>{inside}</details>')
    return "".join(parts) + "".join(f'<p class="quiet">{escape(text)}</p>' for text in legend(report))


def _costs(report: BenchReport) -> str:
    return table(("subject", *COSTS), [(s.name, *costs(s)) for s in report.subjects])


def _audit(report: BenchReport) -> str:
    parts = []
    for subject in report.subjects:
        said = [subject.what] if subject.what else []
        said += [*subject.audit, f"here: {subject.effective}" if subject.effective else ""]
        sentences = "".join(f"<p>{escape(text)}</p>" for text in said if text)
        parts.append(f"<h3>{escape(subject.name)}</h3>{sentences}")
    return "".join(parts)


def _unavailable(report: BenchReport) -> str:
    return "".join(
        f"<h3>{escape(name)}</h3><p>{escape(reason)}</p>" + (f'<p class="hint">{escape(hint)}</p>' if hint else "")
        for name, reason, hint in report.unavailable
    )


def _facts(report: BenchReport) -> str:
    items = "".join(f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in report.facts)
    command = f"<pre><code>{escape(report.command)}</code></pre>" if report.command else ""
    return f'<dl class="pairs">{items}</dl>{command}'


def _styles(report: BenchReport) -> list[tuple[str, int, bool]]:
    return [(s.name, index, s.baseline) for index, s in enumerate(report.subjects)]


def _floored(subject: SubjectRow) -> float:
    return max(DRIFT_FLOOR, subject.accuracy.drift) if subject.accuracy else DRIFT_FLOOR


def _short(point: PointRow) -> str:
    return f"batch {point.batch}" + (f" x {point.length}" if point.length else "")


def _compact(size: str) -> str:
    """``33 to 64`` as ``33–64``: there is little room below a bar."""
    return size.replace("sides of ", "").replace(" to ", "–")
