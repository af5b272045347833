import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from deploykit import gate as library
from deploykit.gate import Row
from tests.gate import xsd
from tests.gate.test_outputs import SCHEMA, aa_result, result


@pytest.fixture
def told(monkeypatch):
    """Replaces the gate: the verdict is the test's; ``told.choices`` is what the command asked for."""

    class Told:
        result = result("PASS", rows=(Row("audit", "PASS", "", "as the baseline's."),))

        def gate(self, candidate, baseline, choices, on_progress, on_estimate):
            self.sides, self.choices = (candidate, baseline), choices
            on_estimate("timing takes a while")
            return self.result

        def aa(self, subject, runs, choices, on_progress, on_estimate):
            self.sides, self.runs = (subject,), runs
            return aa_result()

    made = Told()
    monkeypatch.setattr(library, "gate", made.gate)
    monkeypatch.setattr(library, "aa", made.aa)
    return made


@pytest.mark.parametrize(("status", "code"), [("PASS", 0), ("FAIL", 1), ("INCONCLUSIVE", 3)])
def test_exit_codes_are_pass_fail_and_cannot_tell(command, told, status, code):
    told.result = result(status)
    found, out, err = command("gate", "new.bundle", "--baseline", "old.bundle")
    assert found == code
    assert out.startswith(f"{status}: new.bundle")
    assert err == "timing takes a while\n"
    assert told.sides == ("new.bundle", "old.bundle")


def test_every_option_reaches_the_library(command, told):
    words = ["--budget", "edge", "--data", "t.txt", "--baseline-digest", "abcdef01", "--python", "/a/python"]
    words += ["--baseline-python", "/b/python", "--calibration", "aa.json", "--all", "--seed", "9", "--threads", "1"]
    words += ["--workload", "single", "--max-minutes", "2.5"]
    assert command("gate", "n", "--baseline", "o", *words)[0] == 0
    found = told.choices
    assert (found.budget, found.data, found.digest, str(found.python)) == ("edge", "t.txt", "abcdef01", "/a/python")
    assert (str(found.baseline_python), str(found.calibration)) == ("/b/python", "aa.json")
    assert found.max_minutes == 2.5
    assert (found.everything, found.seed, found.threads, found.workload) == (True, 9, 1, "single")


def test_all_outputs_are_written_also_when_it_fails(command, told, tmp_path, monkeypatch):
    told.result = result("FAIL")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "step.md"))
    (tmp_path / "step.md").write_text("before\n")
    words = ["-o", "r.json", "--junit", "r.xml", "--summary", "github", "--annotations"]
    code, out, _ = command("gate", "n", "--baseline", "o", *words)
    assert code == 1
    assert json.loads((tmp_path / "r.json").read_text())["schema"] == "deploykit.gate/1"
    assert "<testsuite" in (tmp_path / "r.xml").read_text()
    assert (tmp_path / "step.md").read_text().startswith("before\n## ❌ FAIL")
    assert out.count("::error ") == 1


def test_json_is_one_document_and_the_annotation_goes_elsewhere(command, told):
    told.result = result("FAIL")
    code, out, err = command("gate", "n", "--baseline", "o", "--json", "--annotations")
    assert (code, json.loads(out)["status"]) == (1, "FAIL")
    assert "\n::error " in err


def test_a_bundle_against_itself(command, told, tmp_path):
    code, out, _ = command("gate", "n", "--aa", "4", "-o", "aa.json", "--summary", "aa.md")
    assert (code, told.runs) == (0, 4)
    assert "0 false alarms in 4 runs" in out
    assert json.loads((tmp_path / "aa.json").read_text())["kind"] == "aa"
    assert "own noise" in (tmp_path / "aa.md").read_text()
    assert json.loads(command("gate", "n", "--aa", "4", "--json")[1])["runs"] == 4


def test_noise_whose_time_was_up_is_undecided(command, told, monkeypatch):
    monkeypatch.setattr(library, "aa", lambda *_, **__: replace(aa_result(), asked=9))
    code, out, _ = command("gate", "n", "--aa", "9", "--max-minutes", "1")
    assert code == 3
    assert "in 4 runs" in out
    assert "the time was up before 9 were done" in " ".join(out.split())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "CANDIDATE"),
        (["n"], "--baseline old.bundle"),
        (["n", "--aa", "0"], "--aa"),
        (["n", "--aa", "3", "--baseline", "o"], "--baseline means nothing with --aa"),
        (["n", "--aa", "3", "--budget", "p50<=5ms"], "p50<=5ms is on the time itself"),
        (["n", "--baseline", "o", "--max-minutes", "0"], "max_minutes is 0, expected more than 0"),
        (["n", "--baseline", "o", "--junit", "nowhere/r.xml"], "no folder 'nowhere'"),
        (["n", "--baseline", "o", "--summary", "github"], "GITHUB_STEP_SUMMARY is not set"),
        (["nothing.bundle", "--baseline", "o"], "the candidate 'nothing.bundle' is missing"),
        (["n", "--baseline", "o", "--budget", "drfit<=1"], "did you mean 'drift'"),
    ],
)
def test_wrong_usage_ends_with_2_and_the_way_out(command, monkeypatch, words, says):
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    code, out, err = command("gate", *words)
    assert (code, out) == (2, "")
    assert says in err


def test_a_missing_baseline_is_said_with_the_way_out(command, bundle):
    code, _, err = command("gate", bundle, "--baseline", "old.bundle")
    assert code == 2
    assert "the baseline 'old.bundle' is missing" in err
    assert "keep the one that is in production" in err


def test_one_variant_under_two_names_is_no_comparison(command, bundle):
    code, _, err = command("gate", f"{bundle}@portable", "--baseline", f"{bundle}@onnxruntime-fp32")
    assert code == 2
    assert "candidate and baseline are the same" in err
    assert "--aa" in err


def test_a_gate_that_cannot_run_leaves_its_reason_in_every_file(command, tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "step.md"))
    words = ["-o", "r.json", "--junit", "r.xml", "--html", "r.html", "--summary", "github", "--annotations"]
    code, out, err = command("gate", "gone <b>.bundle", "--baseline", "o", *words)
    assert code == 2
    assert "error: the candidate 'gone <b>.bundle' is missing" in err
    assert out.startswith("::error title=deploykit gate%3A ERROR gone")
    found = json.loads((tmp_path / "r.json").read_text())
    assert (found["kind"], found["status"], found["hint"]) == ("error", "ERROR", "build it first")
    junit = (tmp_path / "r.xml").read_text()
    assert xsd.faults(junit, SCHEMA) == []
    assert ElementTree.fromstring(junit).find("testcase/error").get("message").endswith("is missing")
    assert "is missing" in (tmp_path / "step.md").read_text()
    page = (tmp_path / "r.html").read_text()
    assert "build it first" in page
    assert "gone &lt;b&gt;.bundle" in page


def test_an_unforeseen_error_is_told_too_and_noise_has_its_page(command, told, tmp_path, monkeypatch):
    assert command("gate", "n", "--aa", "2", "--html", "aa.html")[0] == 0
    assert "0 of 4" in (tmp_path / "aa.html").read_text()

    def broken(*_, **__):
        raise ValueError("no such luck\nmore")

    monkeypatch.setattr(library, "gate", broken)
    assert command("gate", "n", "--baseline", "o", "--junit", "r.xml")[0] == 70
    assert "ValueError: no such luck" in (tmp_path / "r.xml").read_text()
