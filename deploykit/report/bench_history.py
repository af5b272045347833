"""The history of benches as text and as one HTML file: every trend, and where it changed its level."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from deploykit.measure.history import LEAST_CHANGE, Change, History, Trend
from deploykit.report import bench_plots as plots
from deploykit.report.bench_html import figure, legend_of
from deploykit.report.bench_plots import Place, Series
from deploykit.report.markdown import escape as escape_markdown
from deploykit.report.model import clean, number
from deploykit.report.page import page
from deploykit.report.terminal import table

METHOD = (
    "A change is where Pettitt's rank test finds p <= 0.05 and the medians before and after differ by 3 % or more; it "
    "takes about 6 runs on either side. It is a hint of where to look and fails nothing."
)
_LABELS = {"p50_ms": "p50 ms", "items_per_s": "items/s"}
_HEADER = ("subject", "point", "metric", "hardware", "runs", "first", "last", "trend", "changes")
_BLOCKS = "▁▂▃▄▅▆▇█"
_SHOWN = 30


def terminal(history: History) -> str:
    """A table with a row per trend."""
    lines = [*_said(history), "", table(_HEADER, [_cells(trend) for trend in history.trends]), "", METHOD]
    return "\n".join(lines) + "\n"


def markdown(history: History) -> str:
    """The same as GitHub-flavoured Markdown."""
    rows = [[escape_markdown(cell) for cell in _cells(trend)] for trend in history.trends]
    body = "\n".join("| " + " | ".join(row) + " |" for row in (_HEADER, ["---"] * len(_HEADER), *rows))
    said = "\n\n".join(escape_markdown(text) for text in _said(history))
    return f"# Bench history\n\n{said}\n\n{body}\n\n{escape_markdown(METHOD)}\n"


def html(history: History) -> str:
    """One plot for each point and metric, a line per subject, a ring where a line changed its level."""
    subjects = list(dict.fromkeys(trend.subject for trend in history.trends))
    styles = {name: index for index, name in enumerate(subjects)}
    groups: dict[tuple[str, str, str], list[Trend]] = {}
    for trend in history.trends:
        groups.setdefault((trend.hardware, trend.point, trend.metric), []).append(trend)
    drawn = [_plot(index, *key, trends, styles) for index, (key, trends) in enumerate(groups.items())]
    said = "".join(f"<p>{escape(text)}</p>" for text in _said(history))
    keys = legend_of((clean(name), index, False) for name, index in styles.items())
    body = (
        f'<header><h1>Bench history</h1>{said}<p class="quiet">{escape(METHOD)}</p></header>'
        f'<section><h2>Trends</h2>{keys}<div class="plots">{"".join(drawn)}</div></section>'
    )
    return page("Bench history", body, "bench.css")


def data(history: History) -> dict[str, object]:
    """The history as plain data."""
    rows = [
        {**vars(trend), "changes": [_change_data(change, trend) for change in trend.changes]}
        for trend in history.trends
    ]
    return {"runs": history.runs, "damaged": list(history.damaged), "method": METHOD, "trends": rows}


def _plot(index: int, hardware: str, point: str, metric: str, trends: Sequence[Trend], styles: dict[str, int]) -> str:
    runs = sorted({when for trend in trends for when in trend.when})
    number_of = {when: place + 1 for place, when in enumerate(runs)}
    series, rings = [], []
    for trend in trends:
        places = [Place(number_of[when], value) for when, value in zip(trend.when, trend.values, strict=True)]
        series.append(Series(trend.subject, styles[trend.subject], False, tuple(places)))
        rings += [(styles[trend.subject], places[change.at]) for change in trend.changes]
    label = _LABELS[metric]
    every = max(1, len(runs) // 6)
    x = plots.Linear("run", 0.5, len(runs) + 0.5, tuple(float(run) for run in range(1, len(runs) + 1, every)))
    y = plots.axis(label, [value for trend in trends for value in trend.values], pad=1.2)
    title = clean(f"{label} at {point}, hardware {hardware}")
    count = sum(len(trend.changes) for trend in trends)
    described = f"{len(trends)} subjects over {len(runs)} runs, {count} changes of level, ringed; logarithmic"
    drawing = plots.lines(f"trend-{index}", title, described, series, x, y, rings)
    rows = [[cell for i, cell in enumerate(_cells(trend)) if i not in (1, 2, 3)] for trend in trends]
    return figure(title, drawing, ("subject", "runs", "first", "last", "trend", "changes"), rows)


def _cells(trend: Trend) -> tuple[str, ...]:
    first, last = number(trend.values[0]), number(trend.values[-1])
    said = "; ".join(_change_text(change, trend) for change in trend.changes) or "none"
    texts = (trend.subject, trend.point, _LABELS[trend.metric], trend.hardware)
    return (*map(clean, texts), str(len(trend.values)), first, last, _spark(trend.values), clean(said))


def _spark(values: Sequence[float]) -> str:
    """The last runs as a row of blocks, the highest full; flat where they differ by less than a change would."""
    shown = values[-_SHOWN:]
    low, high = min(shown), max(shown)
    if high < low * (1 + LEAST_CHANGE):
        return _BLOCKS[3] * len(shown)
    return "".join(_BLOCKS[round((value - low) / (high - low) * (len(_BLOCKS) - 1))] for value in shown)


def _change_text(change: Change, trend: Trend) -> str:
    return f"{change.ratio - 1:+.1%} from {trend.when[change.at]} on (p = {change.p:.2g})"


def _change_data(change: Change, trend: Trend) -> dict[str, object]:
    return {**vars(change), "ratio": change.ratio, "when": trend.when[change.at]}


def _said(history: History) -> list[str]:
    changed = sum(bool(trend.changes) for trend in history.trends)
    said = [f"{history.runs} runs, {len(history.trends)} trends, {changed} of them with a change of level"]
    if history.damaged:
        said.append(f"{len(history.damaged)} damaged lines were left out: {', '.join(map(clean, history.damaged[:5]))}")
    return said
