import itertools
import re

import pytest

from deploykit.report import bench_plots as plots
from deploykit.report.bench_plots import Axis, Place, Series


@pytest.mark.parametrize("values", [[1.0], [1.0, 1.0], [0.37, 0.38], [1, 32], [1e-8, 1e-2], [3, 4e7], [990, 1010]])
def test_an_axis_holds_its_values_and_has_a_few_ticks_inside(values):
    axis = plots.axis("ms", values)
    assert all(0 <= axis.at(value) <= 1 for value in values)
    assert all(-1e-9 <= axis.at(mark) <= 1 + 1e-9 for mark in axis.marks())
    assert 2 <= len(axis.marks()) <= 9
    assert len({axis.text(mark) for mark in axis.marks()}) == len(axis.marks())


@pytest.mark.parametrize(("value", "text"), [(0.5, "0.5"), (1.0, "1"), (20.0, "20"), (5000.0, "5,000")])
def test_ticks_have_no_empty_digits(value, text):
    assert plots.tick(value) == text


def coordinates(drawing, pattern):
    return [tuple(map(float, found)) for found in re.findall(pattern, drawing)]


def test_smaller_is_lower_and_further_left():
    x, y = Axis("batch", 1, 100), Axis("ms", 1, 100)
    series = [Series("a", 0, False, (Place(10, 1.0), Place(1, 1.0), Place(100, 100.0)))]
    drawing = plots.lines("p", "title", "told", series, x, y)
    found = coordinates(drawing, r'<circle cx="([\d.]+)" cy="([\d.]+)"')
    assert found[0][0] < found[1][0] < found[2][0]
    assert found[0][1] == found[1][1] > found[2][1]


def test_an_interval_is_drawn_where_there_is_one():
    x, y = Axis("batch", 1, 100), Axis("ms", 1, 100)
    drawing = plots.lines("p", "t", "d", [Series("a", 0, False, (Place(1, 5, 4, 6), Place(10, 5, None, 6)))], x, y)
    ((top, bottom),) = coordinates(drawing, r'class="span"[^>]*y1="([\d.]+)"[^>]*y2="([\d.]+)"')
    assert top > bottom


def test_the_frontier_is_a_stair_whose_names_do_not_overlap():
    x, y = Axis("ms", 1, 100), Axis("drift", 1e-8, 1)
    places = {"a": Place(2, 1e-1), "b": Place(2.1, 0.9e-1), "c": Place(2.2, 0.8e-1), "d": Place(90, 1e-8)}
    series = [Series(name, i, False, (place,)) for i, (name, place) in enumerate(places.items())]
    drawing = plots.scatter("p", "t", "d", series, list(places), x, y)
    steps = re.search(r'class="frontier" points="([^"]+)"', drawing)[1].split()
    pairs = [tuple(map(float, step.split(","))) for step in steps]
    assert len(pairs) == 7
    assert all(a[0] == b[0] or a[1] == b[1] for a, b in itertools.pairwise(pairs))
    heights = sorted(y for _, y in coordinates(drawing, r'class="name" x="([\d.]+)" y="([\d.]+)"'))
    assert len(heights) == 4
    assert all(after - before >= 12 for before, after in itertools.pairwise(heights))


def test_series_differ_without_colour_and_when_the_colours_begin_again():
    shapes = [re.sub(r"[\d.]+", "", plots.marker(style, 10, 10)) for style in range(4)]
    assert shapes[0] != shapes[1] != shapes[2]
    assert plots.marker(0, 10, 10) != plots.marker(plots.COLOURS, 10, 10)
    assert "dashed" in plots.swatch(0, True)
    assert "dashed" not in plots.swatch(0, False)


def test_text_is_escaped():
    series = [Series("<b>", 0, False, (Place(1, 1),))]
    x, y = Axis("<i>", 0.5, 2), Axis("<u>", 0.5, 2)
    for drawing in (
        plots.lines("p", "<t>", "<d>", series, x, y),
        plots.scatter("p", "<t>", "<d>", series, ["<b>"], x, y),
        plots.bars("p", "<t>", "<d>", [("<g>", 0.1, 0.2)], "<l>"),
    ):
        assert not re.search(r"<(b|i|u|t|d|g|l)>", drawing)


def test_bars_grow_with_their_values_and_none_is_negative():
    drawing = plots.bars("p", "t", "d", [("a", 1e-5, 1e-4), ("b", 1e-3, 1e-2), ("c", 0.0, 1e-6)], "drift")
    heights = [h for (h,) in ((float(x),) for x in re.findall(r'class="bar"[^>]*height="([\d.]+)"', drawing))]
    assert heights[1] > heights[0] > heights[2] >= 0
