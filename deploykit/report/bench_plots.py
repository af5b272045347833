"""Plots as inline SVG: lines over a logarithmic grid, scattered points with a frontier, bars. No scripts, no fonts.

A drawing is 380 units wide and is shown at 300 to 480 pixels, so that its text stays readable on a phone and does not
shout on a desk. Colours are classes (``c0`` …) that the style sheet sets for light and dark; the shape of the marker
and the dash of the line say the same without colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = 8
_WIDTH, _HEIGHT = 380, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 30, 40
_MARKERS = ("circle", "square", "triangle", "diamond")
_FEW_TICKS = 4


@dataclass(frozen=True)
class Place:
    """A point of a line: where, and the ends of its interval where there are any."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """A line, or a single point, of one subject. ``style`` is its number on the page; ``dashed`` marks a baseline."""

    name: str
    style: int
    dashed: bool
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis. ``ticks`` None: 1, 2 and 5 of every decade, as far as they do not crowd."""

    label: str
    low: float
    high: float
    ticks: tuple[float, ...] | None = None
    text: Callable[[float], str] = lambda value: tick(value)

    def at(self, value: float) -> float:
        """0 to 1 along the axis."""
        if self.high <= self.low:
            return 0.5
        return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))

    def marks(self) -> tuple[float, ...]:
        """Where the ticks stand."""
        if self.ticks is not None:
            return self.ticks
        decades = range(math.floor(math.log10(self.low)) - 1, math.ceil(math.log10(self.high)) + 1)
        found: list[float] = []
        for steps in ((1, 2, 5), (1, 3), (1,)):
            found = [m * 10.0**d for d in decades for m in steps if self.low <= m * 10.0**d <= self.high]
            if len(found) <= 2 * _FEW_TICKS:
                break
        every = max(1, math.ceil(len(found) / (2 * _FEW_TICKS)))
        return tuple(found[::every])


@dataclass(frozen=True)
class Linear(Axis):
    """A linear axis; its ticks must be given."""

    def at(self, value: float) -> float:
        """0 to 1 along the axis."""
        return (value - self.low) / (self.high - self.low)


def axis(label: str, values: Sequence[float], *, pad: float = 1.15, text: Callable[[float], str] | None = None) -> Axis:
    """An axis that holds ``values`` (above 0) with some room, and two ticks at the least."""
    low, high = min(values) / pad, max(values) * pad
    found = Axis(label, low, high, None, text or tick)
    while len(found.marks()) < 2:
        low, high = low / 1.3, high * 1.3
        found = Axis(label, low, high, None, text or tick)
    return found


def lines(
    ident: str,
    title: str,
    description: str,
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    rings: Sequence[tuple[int, Place]] = (),
) -> str:
    """One line per series, the interval of every point as a bar through its marker; ``rings`` (style, place) stand
    out.
    """
    shapes = []
    for one in series:
        ordered = sorted(one.places, key=lambda place: place.x)
        path = " ".join(f"{_x(x, p.x):.1f},{_y(y, p.y):.1f}" for p in ordered)
        dash = " dashed" if one.dashed else ""
        shapes.append(f'<g class="s c{one.style % COLOURS}{dash}">')
        shapes.append(f'<polyline points="{path}"/>' if len(ordered) > 1 else "")
        shapes += [_whisker(x, y, p) for p in ordered]
        shapes += [marker(one.style, _x(x, p.x), _y(y, p.y)) for p in ordered]
        shapes.append("</g>")
    for style, place in rings:
        at = f'cx="{_x(x, place.x):.1f}" cy="{_y(y, place.y):.1f}"'
        shapes.append(f'<g class="s c{style % COLOURS}"><circle class="ring" {at} r="10"/></g>')
    return _drawing(ident, title, description, _grid(x, y) + "".join(shapes))


def scatter(
    ident: str, title: str, description: str, series: Sequence[Series], frontier: Sequence[str], x: Axis, y: Axis
) -> str:
    """One point per series; those named in ``frontier`` (in order of x) are joined by a stair and named."""
    places = {one.name: one.places[0] for one in series}
    steps: list[str] = []
    for before, after in zip(["", *frontier], frontier, strict=False):
        if before:
            steps.append(f"{_x(x, places[after].x):.1f},{_y(y, places[before].y):.1f}")
        steps.append(f"{_x(x, places[after].x):.1f},{_y(y, places[after].y):.1f}")
    shapes = [f'<polyline class="frontier" points="{" ".join(steps)}"/>'] if len(frontier) > 1 else []
    for one in series:
        at = _x(x, one.places[0].x), _y(y, one.places[0].y)
        ring = f'<circle class="ring" cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="9"/>' if one.name in frontier else ""
        dash = " dashed" if one.dashed else ""
        shapes.append(f'<g class="s c{one.style % COLOURS}{dash}">{ring}{marker(one.style, *at)}</g>')
    shapes += _names([(name, _x(x, places[name].x), _y(y, places[name].y)) for name in frontier])
    return _drawing(ident, title, description, _grid(x, y) + "".join(shapes))


def bars(ident: str, title: str, description: str, groups: Sequence[tuple[str, float, float]], label: str) -> str:
    """For each group a bar from the bottom to its first value and a tick at its second, on a logarithmic scale."""
    y = axis(label, [max(value, 1e-12) for _, *pair in groups for value in pair], pad=3, text=power)
    width = (_WIDTH - _LEFT - _RIGHT) / len(groups)
    shapes = [_y_grid(y)]
    for index, (name, value, worst) in enumerate(groups):
        left, middle = _LEFT + width * (index + 0.18), _LEFT + width * (index + 0.5)
        top, end = _y(y, max(value, 1e-12)), _y(y, max(worst, 1e-12))
        shapes.append(
            f'<rect class="bar" x="{left:.1f}" y="{top:.1f}" width="{width * 0.64:.1f}"'
            f' height="{max(0.0, _HEIGHT - _BOTTOM - top):.1f}"/>'
            f'<rect class="whisker" x="{left:.1f}" y="{end - 1:.1f}" width="{width * 0.64:.1f}" height="2"/>'
            f'<text x="{middle:.1f}" y="{_HEIGHT - _BOTTOM + 15}" text-anchor="middle">{escape(name)}</text>'
        )
    return _drawing(ident, title, description, "".join(shapes))


def swatch(style: int, dashed: bool) -> str:
    """The line and marker of a series, for a legend."""
    dash = " dashed" if dashed else ""
    return (
        f'<svg class="swatch" viewBox="0 0 34 14" aria-hidden="true"><g class="s c{style % COLOURS}{dash}">'
        f'<polyline points="1,7 33,7"/>{marker(style, 17, 7)}</g></svg>'
    )


def marker(style: int, x: float, y: float) -> str:
    """The shape of a series: another one when the colours begin again."""
    kind = _MARKERS[(style + style // COLOURS) % len(_MARKERS)]
    if kind == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    if kind == "square":
        return f'<rect x="{x - 3.6:.1f}" y="{y - 3.6:.1f}" width="7.2" height="7.2"/>'
    corners = ((0, -4.8), (4.6, 3.6), (-4.6, 3.6)) if kind == "triangle" else ((0, -5.2), (5.2, 0), (0, 5.2), (-5.2, 0))
    return f'<polygon points="{" ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)}"/>'


def _drawing(ident: str, title: str, description: str, shapes: str) -> str:
    return (
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-labelledby="{ident}-t {ident}-d">'
        f'<title id="{ident}-t">{escape(title)}</title><desc id="{ident}-d">{escape(description)}</desc>{shapes}</svg>'
    )


def _grid(x: Axis, y: Axis) -> str:
    found = [_y_grid(y)]
    bottom = _HEIGHT - _BOTTOM
    for value in x.marks():
        at = _x(x, value)
        found.append(f'<line class="grid" x1="{at:.1f}" y1="{_TOP}" x2="{at:.1f}" y2="{bottom}"/>')
        found.append(f'<text x="{at:.1f}" y="{bottom + 15}" text-anchor="middle">{escape(x.text(value))}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    found.append(f'<text class="axis" x="{middle:.0f}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(x.label)}</text>')
    return "".join(found)


def _y_grid(y: Axis) -> str:
    found = []
    for value in y.marks():
        at = _y(y, value)
        found.append(f'<line class="grid" x1="{_LEFT}" y1="{at:.1f}" x2="{_WIDTH - _RIGHT}" y2="{at:.1f}"/>')
        found.append(f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{escape(y.text(value))}</text>')
    # Above the axis and level: turned text is hard to read, and would lie over long numbers.
    found.append(f'<text class="axis" x="0" y="{_TOP - 14}">{escape(y.label)}</text>')
    return "".join(found)


def _whisker(x: Axis, y: Axis, place: Place) -> str:
    if place.low is None or place.high is None:
        return ""
    at, low, high = _x(x, place.x), _y(y, max(place.low, y.low)), _y(y, min(place.high, y.high))
    return f'<line class="span" x1="{at:.1f}" y1="{low:.1f}" x2="{at:.1f}" y2="{high:.1f}"/>'


def _names(labels: Sequence[tuple[str, float, float]]) -> list[str]:
    """Names beside their points, on the side that has room, pushed apart where they would overlap."""
    found, taken = [], list[float]()
    for name, x, y in labels:
        right = x < (_LEFT + _WIDTH - _RIGHT) / 2
        at = y - 12 if y > _TOP + 24 else y + 20
        while any(abs(at - other) < 12 for other in taken):
            at += 13 if at + 13 < _HEIGHT - _BOTTOM else -39
        taken.append(at)
        anchor = "start" if right else "end"
        found.append(f'<text class="name" x="{x:.1f}" y="{at:.1f}" text-anchor="{anchor}">{escape(name)}</text>')
    return found


def _x(scale: Axis, value: float) -> float:
    return _LEFT + scale.at(value) * (_WIDTH - _LEFT - _RIGHT)


def _y(scale: Axis, value: float) -> float:
    return _HEIGHT - _BOTTOM - scale.at(value) * (_HEIGHT - _TOP - _BOTTOM)


def tick(value: float) -> str:
    """``0.5``, ``20``, ``5,000``: no digits that say nothing."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:g}"


def power(value: float) -> str:
    """``1e-5``."""
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
