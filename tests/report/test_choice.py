"""What was measured and not taken, and what a search tried, in every form of the report."""

from __future__ import annotations

from dataclasses import replace

import pytest

from deploykit.report import html, markdown, model, terminal
from deploykit.report.model import candidate_rows, trial_rows
from tests.report.example_manifest import manifest

CANDIDATES = (
    {"variant": "a-int8", "kept": True, "reason": "the fastest <inside>", "drift": 0.0017, "p1": 0.9959, "task": -0.001,
     "p50": 39.2, "low_ms": 37.0, "high_ms": 46.3, "size": 23e6},
    {"variant": "a-fp32", "kept": False, "reason": "2.2x the time of a-int8", "drift": 0.0, "p50": 86.0, "size": 90e6},
)  # fmt: skip
SEARCH = {"search:a-int8": {"trials": [
    {"keep": ["ffn2"], "inside": True, "drift": 0.0006, "p1": 0.9985, "p50_ms": 52.4},
    {"keep": [], "inside": False, "drift": 0.0018, "p1": 0.996, "p50_ms": 39.2},
]}}  # fmt: skip


@pytest.fixture
def report():
    chosen = manifest()
    chosen = replace(chosen, candidates=CANDIDATES, provenance={**chosen.provenance, "search": SEARCH})
    return model.from_manifest(chosen, "x.bundle")


def test_every_form_tells_of_the_candidates(report):
    for text in (html.render(report), markdown.render(report), terminal.render(report)):
        assert "a-int8" in text
        assert "0.00170" in text
        assert "2.2x the time of a-int8" in text
    assert "the fastest &lt;inside&gt;" in html.render(report)


def test_pages_list_what_the_search_tried(report):
    for text in (html.render(report), markdown.render(report)):
        assert "ffn2" in text
        assert "52.40" in text
    assert [row[1] for row in report.trials] == ["nothing", "ffn2"]


def test_a_loss_that_rounds_to_zero_has_no_sign():
    assert candidate_rows(CANDIDATES)[0].task == "0.00"


def test_where_all_was_taken_there_is_no_table():
    assert candidate_rows(CANDIDATES[:1]) == ()
    assert trial_rows({}) == ()


def test_a_trial_that_could_not_be_built_is_a_row_with_its_reason():
    lost = [{"keep": ["ffn2"], "reason": "no memory"}]
    (row,) = trial_rows({"search": {"search:a-int8": {"trials": [], "not_built": lost}}})
    assert row == ("a-int8", "ffn2", "", "", "", "not built: no memory")
