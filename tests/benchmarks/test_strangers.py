"""The judge of `benchmarks.strangers`: what is right, refused, wrong or a crash, without making any model."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import strangers, strangers_page, strangers_reading
from benchmarks.strangers_judge import (
    REFUSED,
    RIGHT,
    TRACEBACK,
    WRONG,
    Answer,
    Wanted,
    compare,
    of_call,
    of_calls,
    of_export,
)

ROWS = np.random.default_rng(0).standard_normal((4, 12)).astype(np.float32)


def _off(cosine: float) -> np.ndarray:
    """`ROWS` with the last one turned away to this cosine, its norm kept."""
    row = ROWS[3].astype(np.float64)
    side = ROWS[0] - (ROWS[0] @ row) / (row @ row) * row
    side *= np.linalg.norm(row) / np.linalg.norm(side)
    turned = ROWS.copy()
    turned[3] = cosine * row + np.sqrt(1 - cosine**2) * side
    return turned


def _vectors(rows: np.ndarray) -> Answer:
    return Answer("vectors", rows)


def test_equal_vectors_are_right():
    verdict = compare(ROWS, ROWS.copy(), 0.99999)
    assert verdict.result == RIGHT
    assert verdict.cosine == pytest.approx(1.0)


@pytest.mark.parametrize(("cosine", "result"), [(0.999995, RIGHT), (0.99997, WRONG), (0.5, WRONG)])
def test_the_worst_row_alone_decides(cosine, result):
    verdict = compare(ROWS, _off(cosine), 0.99999)
    assert verdict.result == result
    assert verdict.cosine == pytest.approx(cosine, abs=1e-6)


def test_a_row_that_differs_is_named():
    assert "1 of 4 inputs differ, most of all number 3" in compare(ROWS, _off(0.9), 0.99999).why


def test_a_lost_normalization_is_wrong_though_no_angle_changes():
    lengths = np.linalg.norm(ROWS, axis=1, keepdims=True)
    verdict = compare(ROWS / lengths, ROWS, 0.99999)
    assert verdict.result == WRONG
    assert "norms" in verdict.why


@pytest.mark.parametrize("got", [ROWS[:, :6], ROWS[:3], np.full_like(ROWS, np.nan), np.zeros_like(ROWS)])
def test_other_shapes_and_numbers_that_are_none_are_wrong(got):
    assert compare(ROWS, got, 0.99999).result == WRONG


def test_an_error_with_a_hint_is_a_refusal_and_one_without_is_not():
    log = "settings\nerror: m.gguf is no encoder\n  → give a folder\n"
    verdict = of_export(2, log)
    assert verdict is not None
    assert verdict.result == REFUSED
    assert verdict.why == "error: m.gguf is no encoder → give a folder"
    assert of_export(2, "error: it failed\n").result == TRACEBACK
    assert of_export(0, log) is None


@pytest.mark.parametrize(
    ("code", "log"),
    [
        (1, "Traceback (most recent call last):\n  File\nKeyError: 'x'\n  → try\n"),
        (70, "error: KeyError: 'x'\n  → this is a bug in deploykit; run again with --debug\n"),
        (4, "error: step 'export' failed: IndexError: out of range\n  → the log below says where; --debug prints it\n"),
        (-11, "error: gone\n  → try again\n"),
        (None, ""),
    ],
)
def test_crashes_bugs_and_hangs_are_no_refusals(code, log):
    assert of_export(code, log).result == TRACEBACK


def test_what_only_a_refusal_answers_is_wrong_when_it_is_exported_or_encoded():
    assert of_calls([], []).result == WRONG
    assert of_call(Wanted(None, 0.99999), _vectors(ROWS)).result == WRONG
    assert of_call(Wanted(None, 0.99999), Answer("error", message="too short", hint="10 ms")).result == REFUSED
    assert of_call(Wanted(None, 0.99999), Answer("error", message="too short")).result == TRACEBACK
    assert of_call(Wanted(ROWS, 0.99999), Answer("traceback", message="KeyError: 1")).result == TRACEBACK


def test_the_worst_call_decides_and_the_worst_cosine_is_told():
    right, wrong = _vectors(ROWS), _vectors(_off(0.5))
    refused = Answer("error", message="no", hint="do")
    wanted = Wanted(ROWS, 0.99999)
    assert of_calls([wanted] * 2, [right, refused]).result == REFUSED
    verdict = of_calls([wanted] * 3, [right, wrong, refused])
    assert verdict.result == WRONG
    assert verdict.cosine == pytest.approx(0.5, abs=1e-6)


def test_there_are_enough_rows_of_every_kind_and_no_two_of_a_name():
    names = [strangers.name_of(row) for row in strangers.EVERY]
    assert len(names) == len(set(names)) >= 70
    groups = {row.group for row in strangers.EVERY}
    assert {"text", "settings", "sentence-transformers", "modules", "images", "audio", "files"} < groups
    assert {"architectures", "no encoder"} < groups


def test_a_quick_look_understands_the_options_of_the_command():
    found = strangers_reading.options(["--dim", "4", "--normalize", "--prompt", "query=query: ", "--pooling", "cls"])
    assert found == {"dim": 4, "normalize": True, "prompts": {"query": "query: "}, "pooling": "cls"}


def test_a_judge_whose_vectors_are_all_alike_is_no_judge():
    with pytest.raises(ValueError, match="alike"):
        strangers._tells_apart(np.ones((3, 4), dtype=np.float32))
    strangers._tells_apart(ROWS)


def test_the_page_counts_by_group_and_gives_reasons(tmp_path):
    row = {"name": "text/bert", "result": RIGHT, "why": "", "cosine": 1.0, "seconds": 9.0}
    row["command"] = "deploykit export m -o b -t onnxruntime -p fp32 --dim 4"
    wrong = {**row, "name": "text/odd", "result": WRONG, "why": "1 of 9 inputs differ", "cosine": 0.5}
    path = tmp_path / "results" / "strangers.json"
    strangers_page.write(path, {"text/odd": wrong, "text/bert": row, "gone/row": row}, ["text/bert", "text/odd"])
    assert [kept["name"] for kept in json.loads(path.read_text("utf-8"))["rows"]] == ["text/bert", "text/odd"]
    assert strangers_page.read(path) == {"text/bert": row, "text/odd": wrong}
    strangers_page.write_page(path, tmp_path / "strangers.md")
    page = (tmp_path / "strangers.md").read_text("utf-8")
    assert "| all | 2 | 1 | 0 | 1 | 0 |" in page
    assert "| odd | WRONG | 0.500000 | `--dim 4` |" in page
    assert "- **odd**: 1 of 9 inputs differ" in page
    assert "hw " in page
    assert "torch " in page
