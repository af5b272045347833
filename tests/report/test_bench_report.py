import re
from html.parser import HTMLParser

import bench_result
import pytest

from deploykit.measure import history
from deploykit.report import bench_history, bench_html, bench_markdown, bench_model, bench_terminal

HOSTILE = "<script>alert('x')</script> | [a](javascript:b) \x1b[31m`"


class Elements(HTMLParser):
    """Collects tags, attributes and visible text; complains about tags that are not closed in order."""

    VOID = ("meta", "rect", "circle", "line", "polyline", "polygon", "br")
    OPTIONAL = ("th", "tr", "td", "li")

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID + self.OPTIONAL:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        if tag not in self.VOID + self.OPTIONAL:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def report():
    return bench_model.from_result(bench_result.made())


FORMS = {
    "html": lambda report: " ".join(Elements(bench_html.render(report)).text),
    "markdown": bench_markdown.render,
    "terminal": bench_terminal.render,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "fact",
    [
        *("openvino-bf16", "plain-onnxruntime", "batch 8, 128 tokens", "3f9c21ab", "4.2e-05", "n = 290", "valid.txt"),
        *("there is no g++", "install g++", "310.0 MB", "90.4 MB", "662", "seed 0", "openvino 2026.4.1"),
    ],
)
def test_every_form_says_everything(report, form, fact):
    assert fact in " ".join(FORMS[form](report).replace("\\", "").split())


@pytest.mark.parametrize("form", FORMS)
def test_every_figure_comes_with_its_interval(report, form):
    text = " ".join(FORMS[form](report).replace("\\", "").split())
    measured = report.subjects[0].measured["b8-l128-c1"]
    assert f"{bench_model.number(measured.p50.value)} {measured.p50.interval()}" in text
    assert report.ratio(report.subjects[0], report.points[0]) in text


def test_the_html_is_whole_and_loads_nothing(report):
    page = bench_html.render(report)
    elements = Elements(page)
    assert elements.open == []
    assert "script" not in elements.tags
    assert not {name for name, _ in elements.attributes if name in ("src", "srcset", "onclick", "onload", "style")}
    assert not [value for name, value in elements.attributes if name == "href"]
    assert "default-src 'none'" in page
    assert "url(" not in page
    assert "@import" not in page


def test_plots_are_named_described_and_told_as_tables(report):
    page = bench_html.render(report)
    drawings = re.findall(r'<svg class="plot".*?</svg>', page, flags=re.S)
    # Two lengths: latency and throughput; two points of the frontier; drift of two variants.
    assert len(drawings) == 2 + 2 + 2 + 2
    for drawing in drawings:
        names = re.search(r'aria-labelledby="(\S+) (\S+)"', drawing).groups()
        assert re.search(rf'<title id="{names[0]}">[^<]+</title><desc id="{names[1]}">[^<]+</desc>', drawing)
    idents = re.findall(r' id="([^"]+)"', page)
    assert len(idents) == len(set(idents))
    assert page.count("<figure>") == page.count("as a table") == len(drawings)


def test_hostile_text_stays_text():
    made = bench_result.made()
    made["subjects"][0]["name"] = made["bundles"][0]["label"] = made["command"] = HOSTILE
    made["unavailable"][0]["reason"] = made["notes"] = [HOSTILE]
    made["unavailable"][0]["reason"] = HOSTILE
    report = bench_model.from_result(made)
    page = bench_html.render(report)
    assert "script" not in Elements(page).tags
    for form in FORMS.values():
        assert "\x1b" not in form(report)
    assert "| [a](" not in bench_markdown.render(report)


def test_the_frontier_holds_those_that_nothing_beats_in_both(report):
    # int8 is fastest, bf16 slower and nearer, plain fp32 slower and exact; torch is exact too, and slower.
    names = [subject.name for subject in report.frontier(report.points[0])]
    assert names == ["openvino-int8", "openvino-bf16", "plain-onnxruntime"]


def test_ratios_are_against_torch_where_it_ran_and_pairs_rounds(report):
    assert report.against == "torch"
    assert report.ratio(report.subject("torch"), report.points[0]) == ""
    ratio = float(report.ratio(report.subject("openvino-bf16"), report.points[0]).partition("x")[0])
    assert ratio == pytest.approx(4, rel=0.1)
    alone = bench_model.from_result(bench_result.made(subjects=("openvino-bf16",)))
    assert (alone.against, alone.ratio(alone.subjects[0], alone.points[0]), alone.lead(alone.points[0])) == ("", "", "")


def test_one_process_has_no_span():
    made = bench_result.made(subjects=("openvino-bf16", "torch"))
    for row in made["subjects"]:
        row["peak_rss_bytes"]["n"] = row["start"]["load_ms"]["n"] = 1
        for measured in row["measurements"]:
            measured["items_per_s"]["n"] = 1
            del measured["rounds"][1:]
    report = bench_model.from_result(made)
    subject, point = report.subjects[0], report.points[0]
    assert bench_model.costs(subject)[1] == "120 ms"
    assert bench_model.costs(subject)[3] == "310.0 MB"
    assert "[" not in report.ratio(subject, point)
    assert "[" not in bench_model.rate_text(subject.measured[point.name].items)


def test_noise_is_said_first_in_every_form():
    noise = {"load_before": 3.0, "steal_max": 0.2, "warnings": ["the host took up to 20.0% of this machine's time"]}
    report = bench_model.from_result(bench_result.made(noise=noise))
    for form in FORMS.values():
        text = form(report)
        assert 0 < text.index("the host took up to") < text.index("openvino-int8", text.index("the host took up to"))


def test_one_subject_at_one_point_of_inputs_as_they_come_is_enough():
    made = bench_result.made(subjects=("openvino-bf16",), points=[(1, None, 2)], unavailable=[])
    report = bench_model.from_result(made)
    for form in FORMS.values():
        assert "inputs as they come, 2 calls at a time" in form(report)
    assert "Accuracy against latency" not in bench_html.render(report)


def test_what_was_not_measured_is_a_dash_or_said():
    made = bench_result.made()
    for row in made["subjects"]:
        row.update(accuracy=None, bytes=None, drift_by_size=[])
        for measured in row["measurements"]:
            measured.update(tokens_per_s=None, padding=None, preprocess_ms=None)
            measured["p50_ms"].update(low=None, high=None)
    report = bench_model.from_result(made)
    for form in FORMS.values():
        assert "not measured" in form(report)
    assert Elements(bench_html.render(report)).open == []


def test_enough_calls_give_a_p99_in_every_form():
    made = bench_result.made(subjects=("openvino-bf16",), points=[(1, 16, 1)])
    made["subjects"] = [bench_result.subject("openvino-bf16", calls=300, points=[(1, 16, 1)])]
    report = bench_model.from_result(made)
    assert report.subjects[0].measured["b1-l16-c1"].p99.value is not None
    assert bench_model.p99_reasons(report) == ()


def test_the_history_has_every_trend_and_its_changes(tmp_path):
    for day in range(1, 21):
        made = bench_result.made(subjects=("openvino-bf16",), created=f"2026-10-{day:02d}T00:00:00")
        for measured in made["subjects"][0]["measurements"]:
            measured["p50_ms"]["value"] = 1.0 + day / 1000 + (day > 10)
        history.append(made, tmp_path)
    found = history.read(tmp_path)
    page = bench_history.html(found)
    assert Elements(page).open == []
    assert page.count('class="ring"') == len(bench_result.POINTS)
    for text in (page, bench_history.terminal(found), bench_history.markdown(found).replace("\\", "")):
        assert "from 2026-10-11T00:00:00 on" in text
        assert "fails nothing" in text
    assert "▁▁▁▁▁▁▁▁▁▁██████████" in bench_history.terminal(found)
    changes = [change for trend in bench_history.data(found)["trends"] for change in trend["changes"]]
    assert {change["at"] for change in changes} == {10}
