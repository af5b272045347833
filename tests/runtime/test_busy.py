"""What others take of the cores is told from what this process takes itself."""

import os
import subprocess
import sys
import time

import pytest

from deploykit.runtime import busy
from deploykit.runtime.busy import Busy, Meter

STAT = "cpu  0 0 0 0\ncpu0 {user} 0 0 {idle} 0 0 0 {steal} 0 0\ncpu1 0 0 0 {idle} 0 0 0 0 0 0\nintr 1\n"


@pytest.fixture
def stat(tmp_path, monkeypatch):
    """``stat(user=…)``: what the system says from now on, in ticks."""
    path = tmp_path / "stat"
    monkeypatch.setattr(busy, "_STAT", path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    monkeypatch.setattr(time, "process_time", lambda: 0.0)
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    return lambda **ticks: path.write_text(STAT.format(**({"user": 0, "idle": 0, "steal": 0} | ticks)))


def test_shares_are_of_the_usable_cores(stat):
    stat()
    meter = Meter()
    stat(user=60, idle=60, steal=20)
    found = meter.read()
    assert (found.others, found.stolen) == pytest.approx((0.3, 0.1))
    assert found.is_busy


def test_ones_own_work_is_not_that_of_others(stat, monkeypatch):
    stat()
    meter = Meter()
    stat(user=60, idle=70)
    monkeypatch.setattr(time, "process_time", lambda: 0.6)
    assert not meter.read().is_busy


def test_where_the_system_does_not_tell_nothing_is_known(stat, tmp_path):
    assert Meter().read() is None


def test_the_sentence_says_how_busy_it_was():
    assert "the machine was busy: others took 62 %" in Busy(0.62, 0.0, 3.1).sentence
    assert "quiet" in Busy(0.01, 0.0, 0.2).sentence


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")
def test_a_process_that_works_is_seen():
    work = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
    with subprocess.Popen(work, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        meter = Meter()
        time.sleep(0.5)
        found = meter.read()
        other.kill()
    assert found.others > 0
