import dataclasses
import json
import os
import subprocess
import sys
import time

import pytest

from deploykit.runtime import choice
from deploykit.runtime.engines import EngineOptions
from deploykit.runtime.hardware import Cpu
from deploykit.runtime.selection import Device
from deploykit.runtime.selftest import VariantResult

RESULTS = (VariantResult("a", "passed", 0.99, "", 1.5), VariantResult("b", "failed", None, "its trial died", None))
DEVICE = Device(Cpu("x86_64", "test", frozenset({"avx2", "fma"})), lambda: None)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "choices"


def wanted(bundle, device=DEVICE, prefer="speed", options=None):
    return choice.wanted(bundle, bundle.manifest.variants, prefer, options or EngineOptions(2), device)


@pytest.fixture
def key(shared):
    return wanted(shared)


def only(cache):
    [path] = cache.iterdir()
    return path


def test_what_was_written_is_read(key):
    assert choice.read(key) == ((), "")
    assert choice.write(key, RESULTS) == ""
    assert choice.read(key) == (RESULTS, "")


def test_it_is_this_users_alone(key, cache):
    old = os.umask(0)
    try:
        choice.write(key, RESULTS)
    finally:
        os.umask(old)
    assert (cache.stat().st_mode & 0o777, only(cache).stat().st_mode & 0o777) == (0o700, 0o600)


def test_every_part_of_the_key_counts(shared, key, monkeypatch):
    cpu = DEVICE.cpu
    others = [
        wanted(dataclasses.replace(shared, digest="0" * 64)),
        wanted(shared, prefer="size"),
        wanted(shared, options=EngineOptions(1)),
        wanted(shared, options=EngineOptions(2, arena=False)),
        wanted(shared, dataclasses.replace(DEVICE, cpu=dataclasses.replace(cpu, model="other"))),
        wanted(shared, dataclasses.replace(DEVICE, cpu=dataclasses.replace(cpu, features=frozenset({"avx2"})))),
        choice.wanted(shared, shared.manifest.variants[:1], "speed", EngineOptions(2), DEVICE),
    ]
    monkeypatch.setattr(choice, "engine_version", lambda target: "0.0.1")
    others.append(wanted(shared))
    choice.write(key, RESULTS)
    assert [choice.read(other) for other in others] == [((), "")] * len(others)


def damaged(change):
    def apply(path):
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))

    return apply


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: path.write_bytes(b"[" * 100_000),
        lambda path: path.write_bytes(b" " * (1 << 19)),
        lambda path: path.write_bytes(b"\xff\xfe"),
        lambda path: path.write_text("[]"),
        damaged(lambda data: data.update(schema="deploykit.choice/2")),
        damaged(lambda data: data.update(results=[])),
        damaged(lambda data: data["wanted"].update(threads=9)),
        damaged(lambda data: data["results"][0].update(p50_ms="fast")),
        damaged(lambda data: data["results"][0].update(p50_ms=float("nan"))),
        damaged(lambda data: data["results"][0].update(status="best")),
    ],
)
def test_a_damaged_file_is_not_used_and_said_and_written_anew(key, cache, spoil):
    choice.write(key, RESULTS)
    spoil(only(cache))
    found, note = choice.read(key)
    assert found == ()
    assert "is not used" in note
    assert choice.write(key, RESULTS) == ""
    assert choice.read(key) == (RESULTS, "")


def test_a_link_is_not_followed(key, cache, tmp_path):
    choice.write(key, RESULTS)
    only(cache).rename(tmp_path / "elsewhere.json")
    choice._path(key).symlink_to(tmp_path / "elsewhere.json")
    found, note = choice.read(key)
    assert (found, "is not used" in note) == ((), True)


def test_a_folder_that_others_may_write_to_is_neither_read_nor_written(key, cache):
    choice.write(key, RESULTS)
    cache.chmod(0o777)
    assert choice.read(key)[0] == ()
    assert "others may write" in choice.read(key)[1]
    assert "others may write" in choice.write(key, RESULTS)


def test_a_file_of_another_user_is_not_read(key, monkeypatch):
    choice.write(key, RESULTS)
    mine = os.geteuid()
    monkeypatch.setattr(choice.os, "geteuid", lambda: mine + 1)
    assert choice.read(key)[0] == ()


def test_a_folder_that_cannot_be_written_is_said(key, cache):
    cache.parent.parent.mkdir(exist_ok=True)
    cache.parent.write_text("a file")
    assert choice.read(key)[0] == ()
    assert f"cannot be remembered in '{cache}'" in choice.write(key, RESULTS)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_said(key, cache):
    choice.write(key, RESULTS)
    cache.chmod(0o500)
    assert "cannot be remembered" in choice.write(key, RESULTS)
    assert choice.read(key) == (RESULTS, "")


def test_no_clock_is_read(key, cache, monkeypatch):
    for name in ("time", "time_ns", "localtime", "gmtime"):
        monkeypatch.setattr(time, name, lambda *_: pytest.fail("a clock was read"))
    choice.write(key, RESULTS)
    for moment in (0, 4_000_000_000):
        os.utime(only(cache), (moment, moment))
        assert choice.read(key) == (RESULTS, "")


def test_the_folder_does_not_grow_without_end(key, cache):
    cache.mkdir(parents=True, mode=0o700)
    for index in range(choice._MAX_FILES + 1):
        (cache / f"{index}.json").write_text("{}")
    choice.write(key, RESULTS)
    assert only(cache) == choice._path(key)


WRITER = """
import json, sys
from deploykit.runtime import choice
from deploykit.runtime.selftest import VariantResult
wanted = json.load(sys.stdin)
for i in range(60):
    results = [VariantResult("a", "passed", 0.9, "x" * 3000, float(i)) for _ in range(20)]
    assert choice.write(wanted, results) == "", choice.write(wanted, results)
    found, note = choice.read(wanted)
    assert len(found) == 20 and not note, note
"""


def test_processes_that_write_at_once_never_leave_half_a_file(key, cache):
    text = json.dumps(key).encode()
    writers = [subprocess.Popen([sys.executable, "-c", WRITER], stdin=subprocess.PIPE) for _ in range(3)]
    for writer in writers:
        writer.stdin.write(text)
        writer.stdin.close()
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert len(choice.read(key)[0]) == 20
    assert only(cache).suffix == ".json"


def test_a_killed_writer_leaves_the_old_file_or_the_new_one(key, cache):
    choice.write(key, RESULTS)
    for pause in range(4):
        writer = subprocess.Popen([sys.executable, "-c", WRITER], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        writer.stdin.write(json.dumps(key).encode())
        writer.stdin.close()
        before = choice._path(key).stat().st_ino
        deadline = time.monotonic() + 30
        while choice._path(key).stat().st_ino == before and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(0.001 * pause)
        writer.kill()
        writer.wait()
        found, note = choice.read(key)
        assert (len(found) in (2, 20), note) == (True, "")
