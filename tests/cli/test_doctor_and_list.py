import json
import subprocess

import pytest

from deploykit import doctor


def test_doctor_tells_what_loads(command):
    code, out, _ = command("doctor", "--json")
    findings = json.loads(out)
    states = {e["name"]: e["state"] for e in findings["engines"]}
    assert set(states) >= {"onnxruntime", "openvino"}
    assert code == (0 if "loads" in states.values() else 4)
    assert findings["cores"] >= 1
    assert findings["packages"]["deploykit"]
    assert {f["role"] for f in findings["folders"]} == {"store", "unpacked bundles"}
    assert findings["telemetry"]["deploykit"] == "sends nothing"


def test_doctor_for_people_names_every_section(command):
    out = command("doctor")[1]
    for title in ("machine", "engines", "packages", "folders", "telemetry"):
        assert f"\n{title}\n" in f"\n{out}"


def answer(code, stdout="", stderr=""):
    return lambda *a, **k: subprocess.CompletedProcess(a, code, stdout, stderr)


@pytest.mark.parametrize(
    ("run", "state", "detail"),
    [
        (answer(-11), "broken", "its import crashed with SIGSEGV"),
        (answer(1, stderr="…\nModuleNotFoundError: No module named 'openvino'\n"), "not installed", ""),
        (
            answer(1, stderr="ImportError: libtbb.so.12: cannot open\n"),
            "broken",
            "ImportError: libtbb.so.12: cannot open",
        ),
        (answer(0, stdout='{"version": "2026.4", "devices": ["CPU"]}\n'), "loads", "2026.4 (CPU)"),
    ],
)
def test_an_engine_that_crashes_is_reported(monkeypatch, run, state, detail):
    monkeypatch.setattr(subprocess, "run", run)
    assert doctor.probe("openvino") == doctor.EngineState("openvino", state, detail)


def test_an_engine_that_hangs_is_reported(monkeypatch):
    def hang(*args, **settings):
        raise subprocess.TimeoutExpired("python", settings["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    assert doctor.probe("openvino").state == "broken"


def test_without_any_engine_doctor_ends_with_4(command, monkeypatch):
    monkeypatch.setattr(doctor, "probe", lambda name: doctor.EngineState(name, "not installed", ""))
    code, _, err = command("doctor")
    assert code == 4
    assert "pip install" in err


@pytest.mark.parametrize("kind", ["targets", "precisions", "sources", "objectives"])
def test_every_list_has_names_and_sentences(command, kind):
    code, out, _ = command("list", kind, "--json")
    entries = json.loads(out)
    assert code == 0
    assert entries
    assert all(e["name"] and e["summary"] for e in entries)
    assert all(e["name"] in command("list", kind)[1] for e in entries)


def test_targets_say_what_they_can_do(command):
    targets = {e["name"]: e for e in json.loads(command("list", "targets", "--json")[1])}
    assert "fp32" in targets["onnxruntime"]["precisions"]
    assert targets["onnxruntime"]["installed"] in (True, False)


def test_an_unknown_list_names_the_nearest(command):
    code, _, err = command("list", "target")
    assert code == 2
    assert "'targets'" in err
