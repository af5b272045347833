import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploykit.errors import DiskError, SourceError, StepCrashError
from deploykit.pipeline.child import Request, run_in_child

ACTIONS = "actions_for_tests"


@pytest.fixture
def child(tmp_path, monkeypatch, request):
    monkeypatch.setenv("PYTHONPATH", str(request.path.parent))

    def run(action, timeout_s=60.0, **options):
        todo = Request(f"step-{action}", f"{ACTIONS}:{action}", options, {}, str(tmp_path / "out"))
        return run_in_child(todo, tmp_path, timeout_s)

    return run


def test_metadata_comes_back_with_time_and_memory(child, tmp_path):
    metadata = child("write", text="abc")
    assert metadata["length"] == 3
    assert metadata["run"]["peak_memory_mb"] > 1
    assert (tmp_path / "out" / "text.txt").read_text() == "abc"


def test_our_own_errors_cross_the_border_whole(child):
    with pytest.raises(SourceError) as caught:
        child("refuse")
    assert caught.value.message == "the folder 'x' is empty"
    assert caught.value.hint == "put a model in it"


def test_a_segmentation_fault_is_named(child):
    with pytest.raises(StepCrashError, match="died of SIGSEGV"):
        child("crash")


def test_a_hang_ends_at_the_time_limit(child):
    with pytest.raises(StepCrashError, match="still running after 2 s"):
        child("hang", timeout_s=2)


def test_a_programming_mistake_is_a_step_that_failed(child):
    with pytest.raises(StepCrashError, match="KeyError: 'a programming mistake'"):
        child("stumble")


def test_a_full_disk_is_a_disk_error(child):
    with pytest.raises(DiskError, match="no space left"):
        child("fill_the_disk")


def test_the_child_dies_with_its_parent(tmp_path, request):
    request_file = tmp_path / "request.json"
    todo = Request("step", f"{ACTIONS}:hang", {}, {}, str(tmp_path / "out"))
    request_file.write_text(json.dumps(vars(todo)))
    code = (
        "import subprocess, sys, time; "
        "p = subprocess.Popen([sys.executable, '-m', 'deploykit.pipeline.child', sys.argv[1]]); "
        "print(p.pid, flush=True); time.sleep(60)"
    )
    env = {**os.environ, "PYTHONPATH": str(request.path.parent)}
    parent = subprocess.Popen([sys.executable, "-c", code, str(request_file)], stdout=subprocess.PIPE, env=env)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    while not (tmp_path / "out").exists():  # the child has asked the kernel by then
        time.sleep(0.05)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    for _ in range(100):
        if not _runs(pid):
            return
        time.sleep(0.05)
    pytest.fail("the child went on without its parent")


def _runs(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in ("Z", "X")
