"""``deploykit export`` killed at random moments: no bundle or a whole one, and a store that the next run builds on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from deploykit.runtime.bundle import Bundle
from tests.edge import machines

KILLS = int(os.environ.get("DEPLOYKIT_KILLS", "3"))
pytestmark = pytest.mark.edge


@pytest.fixture
def export(tmp_path):
    """Runs the command, or kills it after a while; returns (exit code or minus the signal, seconds, stderr)."""
    from tests.edge import saturating

    model = saturating.save(tmp_path / "model.onnx")
    environment = os.environ | {"DEPLOYKIT_STORE": str(tmp_path / "store"), "OMP_NUM_THREADS": "1"}
    output = tmp_path / "made.bundle"
    command = [sys.executable, "-m", "deploykit", "export", model, "-o", output, "-p", "fp32", "-p", "int8-dynamic"]
    command += ["--budget", "none"]

    def run(kill_after_s=None):
        began = time.perf_counter()
        errors = tmp_path / "errors.txt"
        with errors.open("w") as sink:
            process = subprocess.Popen(command, stdout=sink, stderr=sink, env=environment, cwd=machines.ROOT)
            try:
                code = process.wait(kill_after_s)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                code = process.wait()
        return code, time.perf_counter() - began, errors.read_text()

    run.output = output
    return run


def test_an_export_leaves_no_bundle_or_a_whole_one_and_the_next_one_succeeds(export):
    draw, killed = random.Random(7), 0
    for attempt in range(KILLS):
        # From the start on at first; what is in the store by then makes the later ones reach the writing of the bundle.
        code, _, errors = export(kill_after_s=draw.uniform(0.2, 3 + attempt))
        assert code in (0, -signal.SIGKILL), errors
        killed += code != 0
        if export.output.exists():
            Bundle.open(export.output).verify()
    code, seconds, errors = export()
    assert code == 0, errors
    Bundle.open(export.output).verify()
    for _ in range(KILLS):  # all is in the store: these die while the bundle is put together, or just before or after
        code, _, errors = export(kill_after_s=draw.uniform(0.3, 1) * seconds)
        assert code in (0, -signal.SIGKILL), errors
        killed += code != 0
        Bundle.open(export.output).verify()
    assert killed >= KILLS
    code, _, errors = export()
    assert code == 0, errors
    Bundle.open(export.output).verify()
