"""Processes that write bundles and the cache, killed at random moments: what is left is whole, and the next one works.

DEPLOYKIT_KILLS sets how many are killed for each way of writing.
"""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deploykit.bundle.record import report
from deploykit.runtime import archive
from deploykit.runtime.bundle import Bundle
from deploykit.runtime.selftest import VariantResult

pytest.importorskip("onnx")
pytest.importorskip("tokenizers")

KILLS = int(os.environ.get("DEPLOYKIT_KILLS", "3"))
ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.killed,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="it forks processes to kill them"),
]


class Operations:
    """The process that forks; see `killed.py`."""

    def __init__(self, cache):
        environment = os.environ | {"DEPLOYKIT_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.bundle.killed"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, text=True, env=environment, cwd=ROOT, **pipes)

    def run(self, *operation, kill_after_s=None):
        """Carry out an operation, or kill it on the way; returns (exit code or minus the signal, seconds)."""
        self.process.stdin.write(json.dumps([kill_after_s, *map(str, operation)]) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def operations(cache):
    forking = Operations(cache)
    yield forking
    forking.process.stdin.close()
    forking.process.wait(30)


@pytest.fixture(scope="module")
def written(operations, tmp_path_factory):
    """A bundle, and the same packed."""
    folder = tmp_path_factory.mktemp("written")
    assert operations.run("write", folder, folder / "a.bundle")[0] == 0
    assert operations.run("pack", folder / "a.bundle", folder / "a.dkb")[0] == 0
    return folder


def kill(operations, operation, whole, seed, before=lambda: None):
    """Kill it at ``KILLS`` moments of the time that it takes; ``before`` and ``whole`` are called around each."""
    before()
    code, seconds = operations.run(*operation)
    assert code == 0
    draw, killed = random.Random(seed), 0
    for _ in range(20 * KILLS):  # it may be done before it is to be killed, on a machine whose load changes
        before()
        code, took = operations.run(*operation, kill_after_s=draw.uniform(0, seconds))
        assert code in (0, -signal.SIGKILL)
        whole()
        if code == 0:
            seconds = min(seconds, took)
        killed += code != 0
        if killed == KILLS:
            break
    assert killed == KILLS
    assert operations.run(*operation)[0] == 0
    whole()


def whole(folder):
    Bundle.open(folder).verify()


def test_a_bundle_is_the_old_one_or_the_new_one(operations, tmp_path):
    output = tmp_path / "a.bundle"
    kill(operations, ("write", tmp_path, output), lambda: whole(output), seed=1)


def test_a_bundle_that_was_not_there_is_not_there_or_whole(operations, tmp_path):
    draw = random.Random(2)
    for index in range(KILLS):
        output = tmp_path / f"{index}.bundle"
        operations.run("write", tmp_path, output, kill_after_s=draw.uniform(0, 0.2))
        if output.exists():
            whole(output)
        assert operations.run("write", tmp_path, output)[0] == 0
        whole(output)


def test_a_packed_bundle_is_the_old_one_or_the_new_one(operations, written, tmp_path):
    output = tmp_path / "a.dkb"

    def check():
        assert output.read_bytes() == (written / "a.dkb").read_bytes()

    kill(operations, ("pack", written / "a.bundle", output), check, seed=3)


def test_an_unpacked_bundle_is_the_old_one_or_the_new_one(operations, written, tmp_path):
    output = tmp_path / "a.bundle"
    kill(operations, ("unpack", written / "a.dkb", output), lambda: whole(output), seed=4)


def test_the_cache_holds_whole_bundles_alone_and_the_next_load_works(operations, written, cache, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(cache))
    folder, count = cache / "bundles", iter(range(10_000))

    def forget():
        for place in folder.glob("[!.]*"):
            place.rename(folder / f".gone{next(count)}")

    def check():
        for place in folder.glob("[!.]*"):
            whole(place)
        whole(archive.cached(written / "a.dkb"))

    kill(operations, ("open", written / "a.dkb"), check, seed=5, before=forget)


def test_recording_leaves_the_old_bundle_or_the_new_one(operations, written, tmp_path):
    bundle = tmp_path / "a.bundle"
    assert operations.run("unpack", written / "a.dkb", bundle)[0] == 0
    opened = Bundle.open(bundle)
    results = [VariantResult(variant.name, "passed", 1.0, "", 1.0) for variant in opened.manifest.variants]
    (tmp_path / "r.json").write_text(json.dumps(report(opened, results) | {"bundle": "x"}))
    kill(operations, ("record", bundle, tmp_path / "r.json"), lambda: whole(bundle), seed=6)
