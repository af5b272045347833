import json
import sys
from pathlib import Path

import pytest

from deploykit.errors import StepCrashError
from deploykit.measure import process

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
import bench_result

QUICK = ("--baseline", "none", "--batch", "1", "--length", "4", "--seconds", "0.01", "--rounds", "1", "--threads", "1")
OPTIONS = {
    *("--variant", "--baseline", "--batch", "--length", "--concurrency", "--data", "--seconds", "--rounds"),
    *("--threads", "--seed", "--output", "--html", "--markdown", "--append", "--json"),
}


def test_the_options_are_these(command):
    words = command("bench", "--help")[1].replace(",", " ").split()
    assert {w for w in words if w.startswith("--")} - {"--help"} == OPTIONS
    words = command("report", "--help")[1].replace(",", " ").split()
    assert {"--html", "--markdown", "--json"} <= set(words)


def test_one_run_gives_every_form_and_report_gives_the_same_again(command, bundle, tmp_path):
    (tmp_path / "texts.txt").write_text("hello world\ncat cat hello\n")
    forms = ("-o", "r.json", "--html", "r.html", "--markdown", "r.md", "--append", "history")
    code, out, err = command("bench", bundle, *QUICK, "--data", "texts.txt", *forms)
    assert code == 0
    assert "batch 1, 4 tokens, one call at a time" in out
    assert "onnxruntime-fp32" in out
    assert "report: r.html" in err
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["data"] == {"name": "texts.txt", "builtin": False, "modality": "text", "inputs": 2}
    assert found["command"].split()[0] == "deploykit"
    assert len(found["subjects"][0]["measurements"][0]["rounds"][0]["times_ms"]) >= 6
    assert len((tmp_path / "history" / f"{found['hardware']['id']}.jsonl").read_text().splitlines()) == 1
    code, again, _ = command("report", "r.json", "--html", "s.html", "--markdown", "s.md")
    assert (code, again) == (0, out)
    assert (tmp_path / "s.html").read_text() == (tmp_path / "r.html").read_text()
    assert (tmp_path / "s.md").read_text() == (tmp_path / "r.md").read_text()
    code, told, _ = command("report", "history", "history", "--html", "h.html")
    assert code == 0
    assert "1 runs" in told
    assert (tmp_path / "h.html").read_text().startswith("<!doctype html>")


def test_one_json_document(command, bundle):
    code, out, _ = command("bench", bundle, *QUICK, "--json")
    assert code == 0
    assert json.loads(out)["schema"] == "deploykit.bench/1"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--baseline", "torhc"), "did you mean 'torch'"),
        (("--variant", "onnxruntime-fp23"), "did you mean 'onnxruntime-fp32'"),
        (("--length", "33"), "1 to 32 tokens were proven"),
        (("--length", "1x"), "length is '1x'"),
        (("--concurrency", "0"), "concurrency is 0"),
        (("--concurrency", "two"), "give whole numbers"),
        (("--batch", "-1"), "batch is -1"),
        (("--batch=--5",), "give whole numbers"),
        (("--concurrency", "9" * 5000), "give whole numbers"),
        (("--length", "9" * 5000), "give numbers of tokens"),
        (("--rounds", "0"), "rounds is 0"),
        (("--threads", "0"), "threads is 0"),
        (("--data", "absent.txt"), "absent.txt"),
        (("-o", "absent/r.json"), "no folder 'absent'"),
        (("--html", "."), "is a folder"),
        (("--append", "made/model.onnx"), "is a file"),
    ],
)
def test_bad_input_is_wrong_usage_and_leaves_nothing(command, bundle, tmp_path, words, says):
    before = sorted(tmp_path.rglob("*"))
    given = list(QUICK)
    if words[0] in given:
        place = given.index(words[0])
        del given[place : place + 2]
    code, out, err = command("bench", bundle, *given, *words)
    assert (code, out) == (2, "")
    assert says in err
    assert "→" in err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_bundle_that_is_not_there(command):
    code, _, err = command("bench", "absent.bundle")
    assert code == 2
    assert "no bundle at 'absent.bundle'" in err


def test_a_worker_that_died_ends_with_4_and_leaves_no_file(command, bundle, tmp_path, monkeypatch):
    def died(job, arm, **_):
        raise StepCrashError(f"{arm}: the measuring process died of SIGKILL", hint="out of memory")

    monkeypatch.setattr(process, "measure", died)
    code, out, err = command("bench", bundle, *QUICK, "-o", "r.json", "--html", "r.html", "--append", "history")
    assert (code, out) == (4, "")
    assert "died of SIGKILL" in err
    assert not list(tmp_path.glob("r.*"))
    assert not (tmp_path / "history").exists()


def test_a_baseline_that_was_asked_for_and_cannot_run_ends_with_4(command, bundle):
    given = [word if word != "none" else "torch" for word in QUICK]
    code, out, err = command("bench", bundle, *given)
    assert code == 4
    assert "onnxruntime-fp32" in out
    assert "not measured: torch: the bundle does not say what it was exported from" in err


@pytest.mark.parametrize(
    ("asked", "name", "code"),
    [
        ("torch", "b@torch", 4),
        ("plain-openvino", "b@plain-openvino", 4),
        ("plain-openvino", "plain-openvino", 4),
        ("plain", "b@plain-openvino", 4),
        ("all", "b@plain-openvino", 4),
        ("plain-onnxruntime", "b@plain-openvino", 0),
        (None, "b@torch", 0),
    ],
)
def test_a_baseline_that_is_missing_ends_with_4_where_it_was_asked_for(command, monkeypatch, asked, name, code):
    from deploykit.measure import bench

    missing = [{"name": name, "kind": "baseline", "reason": "not here\x1b[2J", "hint": ""}]
    monkeypatch.setattr(bench, "bench", lambda *_: bench_result.made(unavailable=missing))
    got, out, err = command("bench", "a.bundle", "b.bundle", *(("--baseline", asked) if asked else ()))
    assert got == code
    assert "openvino-bf16" in out
    assert f"not measured: {name}: not here" in err
    assert "\x1b" not in err


@pytest.mark.parametrize("words", [("absent.json",), ("history",), ("history", "absent"), ("a", "b"), ("bad.json",)])
def test_what_cannot_be_reported_on(command, tmp_path, words):
    (tmp_path / "bad.json").write_text('{"schema": "deploykit.bench/1"}')
    code, out, err = command("report", *words)
    assert (code, out) == (2, "")
    assert "→" in err


def test_a_change_in_the_history_fails_nothing(command, tmp_path):
    from deploykit.measure import history

    for day in range(1, 21):
        made = bench_result.made(subjects=("openvino-bf16",), created=f"2026-10-{day:02d}T00:00:00")
        for measured in made["subjects"][0]["measurements"]:
            measured["p50_ms"]["value"] = 1.0 + (day > 10)
        history.append(made, tmp_path / "history")
    code, out, _ = command("report", "history", "history")
    assert code == 0
    assert "+100.0% from 2026-10-11" in out
    code, out, _ = command("report", "history", "history", "--json")
    assert code == 0
    assert json.loads(out)["runs"] == 20
