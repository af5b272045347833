import os
import sys
import time
from pathlib import Path

import pytest

from deploykit.errors import InputError, MissingError, StepCrashError
from deploykit.measure import process


def job(subject, **options):
    return {
        "subject": {"kind": f"python:tests.measure.subjects:{subject}", "options": options},
        "points": [{"name": "p", "inputs": ["a"]}],
        **{"seconds": 0.0, "calls": 3, "warm_seconds": 0.0, "warm_calls": 1},
    }


def gone(pid):
    """Ended; a zombie that nobody has waited for counts."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_what_libraries_print_does_not_get_into_the_answer():
    answer = process.measure(job("chatty"), "it")
    assert len(answer["points"][0]["times_ms"]) == 3


def test_a_hanging_worker_is_stopped_with_all_that_it_started(tmp_path):
    mark = tmp_path / "pid"
    with pytest.raises(StepCrashError, match=r"^the candidate: .*still running after 3 s") as caught:
        process.measure(job("hanging", mark=str(mark)), "the candidate", timeout_s=3)
    assert "about to hang" in caught.value.hint
    assert "measure smaller batches or shorter inputs" in caught.value.hint
    deadline = time.monotonic() + 5
    while not gone(mark.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gone(mark.read_text())


def test_a_killed_worker_is_named_with_its_signal_and_last_lines():
    with pytest.raises(StepCrashError, match="the baseline: the measuring process died of SIGKILL") as caught:
        process.measure(job("dying"), "the baseline")
    assert "last words" in caught.value.hint
    assert "out of memory" in caught.value.hint


def test_an_error_of_the_subject_comes_back_with_the_arm_in_front():
    with pytest.raises(StepCrashError, match="the candidate: measuring failed: ValueError: no such weights"):
        process.measure(job("raising"), "the candidate")
    with pytest.raises(InputError, match="the candidate: the job has no points"):
        process.measure({**job("counting"), "points": []}, "the candidate")


def test_an_interpreter_that_is_not_there_or_has_no_deploykit(tmp_path):
    with pytest.raises(MissingError, match="'/nowhere/python' cannot be started"):
        process.measure(job("counting"), "the candidate", python="/nowhere/python")
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(MissingError, match="has no deploykit"):
        process.measure(job("counting"), "the candidate", python=bare)


def test_the_interpreter_can_be_chosen(tmp_path):
    mark = tmp_path / "started"
    other = tmp_path / "python"
    other.write_text(f'#!/bin/sh\ntouch "{mark}"\nexec "{sys.executable}" "$@"\n')
    other.chmod(0o755)
    process.measure(job("counting"), "it", python=other)
    assert mark.exists()


def test_no_worker_outlives_a_parent_that_is_killed(tmp_path):
    import signal
    import subprocess

    mark = tmp_path / "pid"
    script = (
        "import json, sys\nfrom deploykit.measure import process\n"
        "process.measure(json.loads(sys.argv[1]), 'it', timeout_s=50)"
    )
    import json

    run = [sys.executable, "-c", script, json.dumps(job("sleeping", mark=str(mark)))]
    with subprocess.Popen(run) as parent:
        deadline = time.monotonic() + 20
        while not mark.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        parent.send_signal(signal.SIGKILL)
    worker = mark.read_text()
    deadline = time.monotonic() + 5
    while not gone(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gone(worker)
    assert int(worker) != os.getpid()


def test_the_limit_grows_with_the_points_and_their_seconds(monkeypatch):
    point = {"name": "p", "inputs": ["a"]}
    few, many = {"points": [point]}, {"points": [point] * 100}
    assert process.limit_s(few) > process.TIMEOUT_S
    assert process.limit_s({**many, "seconds": 60.0, "warm_seconds": 5.0}) >= process.TIMEOUT_S + 100 * 65
    assert process.limit_s(many) < process.limit_s({**many, "seconds": 2.0})
    limits = []
    monkeypatch.setattr(process, "ask", lambda *_, timeout_s, python, slow="": limits.append((timeout_s, slow)))
    process.measure(many, "it")
    process.measure(many, "it", timeout_s=7)
    assert [limit for limit, _ in limits] == [process.limit_s(many), 7]
    assert ["the limit grows" in slow for _, slow in limits] == [True, False]
