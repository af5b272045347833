import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from deploykit.gate import AaResult, Identity, Result, Row, outputs, text
from deploykit.measure.noise import MODELS, Simulated
from deploykit.measure.paired import compare
from deploykit.report import gate_html
from tests.gate import xsd

SCHEMA = (Path(__file__).parent / "junit.xsd").read_text()
SIDE = Identity("new.bundle@openvino-int8", "a" * 64, "runs", "python", {"openvino": "1"})
ROWS = (
    Row("audit", "PASS", "nothing lost", "the candidate runs 36 of 36 in int8."),
    Row("drift", "FAIL", "drift<=0.01", "the drift is 0.03 & outside | <b>sure</b>.", "look at\nthe pooling, 100 %"),
    Row("single p50", "INCONCLUSIVE", "p50<=+3%", "this machine cannot tell.", "a quieter machine"),
    Row("p1", "NOT MEASURED", "p1>=0.975", "takes 459 inputs."),
)


def result(status="FAIL", rows=ROWS, **changes):
    hardware = {"id": "cafe0001", "cpu": "a CPU", "cores": 2}
    made = Result(
        status, SIDE, replace(SIDE, name="old.bundle@openvino-int8"), "drift<=0.01", "9 inputs", rows, hardware, 7, 61.5
    )
    return replace(made, **changes)


def test_the_checker_of_the_schema_sees_faults():
    good = outputs.junit(result())
    assert xsd.faults(good, SCHEMA) == []
    for old, new, says in [
        ('tests="4"', 'tests="four"', "no xs:int"),
        ("<properties>", "<properties><x/>", "too many"),
        ('classname="', 'class="', "lacks classname"),
        ("<system-err />", "", "lacks system-err"),
        ("<skipped", "<skip", "'skip'"),
        ("<testcase ", "<testcase extra='1' ", "has the attribute extra"),
    ]:
        assert old in good
        assert any(says in fault for fault in xsd.faults(good.replace(old, new), SCHEMA)), says


@pytest.mark.parametrize("status", ["PASS", "FAIL", "INCONCLUSIVE"])
def test_junit_is_valid_and_what_is_undecided_is_skipped(status):
    suite = ElementTree.fromstring(outputs.junit(result(status)).encode())
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors"), suite.get("skipped")) == (
        "4",
        "1",
        "0",
        "2",
    )
    cases = {case.get("name"): [child.tag for child in case] for case in suite.findall("testcase")}
    assert cases == {"audit": [], "drift": ["failure"], "single p50": ["skipped"], "p1": ["skipped"]}
    assert "cannot tell" in suite.find("testcase/skipped").get("message")
    assert suite.find("properties/property[@name='verdict']").get("value") == status


def test_junit_survives_characters_that_xml_cannot_hold():
    rows = (Row("drift", "FAIL", "x", "worst input 'a\x00\x1b[31m\ufffe'", "look\x07"),)
    assert xsd.faults(outputs.junit(result(rows=rows)), SCHEMA) == []


def test_junit_is_plain_text_escaped_once():
    suite = ElementTree.fromstring(outputs.junit(result()).encode())
    shown = suite.find("system-out").text
    assert "the drift is 0.03 & outside | <b>sure</b>." in " ".join(shown.split())
    assert not re.search(r"&amp;|&lt;|\\[|_]|^## |^\|", shown, re.MULTILINE)


def test_the_html_page_says_all_and_lets_nothing_run():
    times = {"low": -0.01, "change": 0.05, "high": float("inf"), "half_width": 0.02, "pairs": 2}
    figures = {**times, "candidate_ms": [1.0, 2.0], "baseline_ms": [1.5, 2.5]}
    side = replace(SIDE, name="<script>alert(1)</script>\u202e")
    made = result(rows=(*ROWS, Row("batch p50", "FAIL", "p50<=+3%", "slower", "look", figures)), candidate=side)
    page = gate_html.render(replace(made, notes=("0 of 12 false alarms",), skipped=("memory was skipped",)))
    assert "<script" not in page
    assert "\u202e" not in page
    for said in ("FAIL", "look at\nthe pooling", "0 of 12 false alarms", "memory was skipped", "cafe0001", "+5.0 %"):
        assert said in page
    assert "[-1.0 %, +∞], 2 pairs" in page
    assert '<td data-label="baseline, ms">1.5</td>' in page


def test_the_page_has_a_row_each_and_nothing_escapes_its_cell():
    page = outputs.markdown(result(skipped=("times were not looked at",), notes=("0 of 12 false alarms",)))
    table = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(table) == 5
    assert "0.03 &amp; outside \\| &lt;b>sure&lt;/b>." in page
    assert "→ look at the pooling" in page
    assert "- times were not looked at" in page
    assert "- 0 of 12 false alarms" in page
    assert "hw cafe0001" in page
    assert "seed 7" in page


HOSTILE = "a`b\x1b[2J\x9b1m\u202e![x](https://evil.example/p) [y](z) *b* _i_ www.evil.example \ud800\nnext|"


def test_no_name_becomes_markup_a_link_or_a_picture():
    side = replace(SIDE, name=HOSTILE)
    made = result(rows=(Row(HOSTILE, "FAIL", HOSTILE, HOSTILE, HOSTILE),), candidate=side, baseline=side)
    hostile = replace(made, budget=HOSTILE, data=HOSTILE, noise=HOSTILE, notes=(HOSTILE,))
    hostile = replace(hostile, hardware={"id": HOSTILE, "cpu": HOSTILE, "cores": 2})
    noise = replace(aa_result(), subject=side, budget=HOSTILE, noise=HOSTILE, hardware=hostile.hardware)
    for page in (outputs.markdown(hostile), outputs.aa_markdown(noise)):
        page.encode()
        assert all(c.isprintable() or c == "\n" for c in page)
        outside = re.sub(r"(?<!\\)`[^`]*`", "", page)  # code spans
        assert "evil" in outside
        assert not re.search(r"(?<!\\)[`*_\[\]]", outside)
        assert not re.search(r"(?<!\\)://|www\.e", outside)
    title = outputs.markdown(hostile).splitlines()[0]
    assert title.count("`") == 4


def test_nothing_steers_a_terminal_or_the_reader_of_its_log():
    command = "::stop-commands::x\n::add-mask::y ##[error]z"
    side = replace(SIDE, name=HOSTILE)
    made = result(rows=(Row(HOSTILE, "FAIL", "x", HOSTILE, command),), notes=(command,), candidate=side)
    annotated = outputs.annotation(made)
    for page in (text.render(made, 40), text.render_aa(replace(aa_result(), subject=side, noise=command)), annotated):
        page.encode()
        assert all(c.isprintable() or c == "\n" for c in page)
    for page in (text.render(made, 40), text.render_aa(replace(aa_result(), noise=command))):
        assert not any(line.lstrip().startswith("::") for line in page.splitlines())
        assert "##[" not in page
    assert annotated.count("\n") == 0


def test_the_page_is_never_longer_than_a_summary_may_be():
    rows = tuple(Row(f"row {i}", "FAIL", "x", "ü" * 1000, "y") for i in range(2000))
    page = outputs.markdown(result(rows=rows))
    assert len(page.encode()) <= 2**20
    assert page.endswith("may be)\n")


def test_one_annotation_for_a_bundle_that_does_not_pass():
    line = outputs.annotation(result())
    assert line.startswith("::error title=deploykit gate%3A FAIL new.bundle@openvino-int8::the drift is 0.03")
    assert "\n" not in line
    assert "100 %25" in line
    assert "look at%0Athe pooling" in line
    assert outputs.annotation(result("INCONCLUSIVE")).startswith("::warning ")
    assert outputs.annotation(result("PASS")) == ""


def test_the_terminal_shows_verdict_reason_and_where_to_look():
    page = text.render(result(), 100)
    assert page.startswith("FAIL: new.bundle@openvino-int8 against old.bundle@openvino-int8\n")
    assert "→ look at the pooling" in page
    assert "→ a quieter machine" in page
    assert max(map(len, page.splitlines())) <= 100


def aa_result():
    runs = [
        tuple(compare(Simulated(MODELS["quiet runner"], 0.0, i), {"single p50": 0.03}, i).values()) for i in range(4)
    ]
    return AaResult(SIDE, "p50<=+3%", tuple(runs), {"id": "cafe0001", "cpu": "a CPU"}, 0, 100.0, "80 processes")


def test_the_noise_of_the_gate_itself_has_a_page_and_a_text():
    found = aa_result()
    for page in (outputs.aa_markdown(found), text.render_aa(found)):
        assert "0 false alarms in 4 runs" in page
        assert page.count("single p50") == 4
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["half_width"] > 0


def test_a_page_is_replaced_or_added_to(tmp_path):
    outputs.write("one\n", tmp_path / "r.md")
    outputs.write("two\n", tmp_path / "r.md", append=True)
    assert (tmp_path / "r.md").read_text() == "one\ntwo\n"
    outputs.write("three\n", tmp_path / "r.md")
    assert (tmp_path / "r.md").read_text() == "three\n"
