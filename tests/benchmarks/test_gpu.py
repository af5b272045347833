"""The GPU benchmark's logic, with arms of plain Python: who takes turns, what is said of those that cannot run."""

from __future__ import annotations

import itertools
import json
import time

import numpy as np
import pytest

from benchmarks import gpu
from benchmarks.gpu import Arm, Plan, Point

POINTS = [Point(1, 16), Point(32, 16)]
TRUTH = np.eye(4, dtype=np.float32)


class Runner:
    """Answers with ``vectors``, and takes ``ms`` for it; ``fails`` at that batch, when it is loaded or when called."""

    def __init__(self, log, name, ms=1.0, vectors=TRUTH, fails="", at=None):
        self.log, self.name, self.ms, self.result, self.fails, self.at = log, name, ms, vectors, fails, at

    def load(self, feeds):
        self.batch = int(feeds["batch"][0])
        if self.fails == "load" and self.batch == self.at:
            raise RuntimeError("\nthe shapes are outside the profiles\nand more")

    def call(self):
        self.log.append(self.name)
        if self.fails == "call" and len(self.log) > 40:
            raise RuntimeError("an illegal memory access")

    def vectors(self):
        return self.result

    def close(self):
        self.log.append(f"{self.name} closed")


def compared(*runners, plan=None, more=()):
    plan = plan or Plan(rounds=3, calls=2, warm_up=1)
    by_name = {runner.name: runner for runner in runners}
    arms = [Arm(r.name, r.name.rpartition("-")[2], lambda r=r: r) for r in runners]

    def timer(call, count):
        log = runners[0].log
        for _ in range(count):
            call()
        return [by_name[log[-1]].ms] * count

    return gpu.compare(
        [*arms, *more], POINTS, lambda point: {"batch": np.array([point.batch])}, lambda feeds: TRUTH, timer, plan
    )


def row(rows, arm, batch):
    return next(r for r in rows if (r["arm"], r["batch"]) == (arm, batch))


def test_arms_take_turns_and_are_closed():
    log = []
    rows = compared(Runner(log, "torch-fp16", 2.0), Runner(log, "tensorrt-fp16", 1.0))
    assert row(rows, "torch-fp16", 1)["ms"] == {"median": 2.0, "low": 2.0, "high": 2.0, "n": 3, "confidence": 0.75}
    first = log[: log.index("tensorrt-fp16 closed")]
    changes = sum(a != b for a, b in itertools.pairwise(first))
    assert changes >= 6  # in every round both run
    assert log[-2:] == ["tensorrt-fp16 closed", "torch-fp16 closed"]


def test_what_cannot_run_has_a_reason_and_no_figure():
    log = []

    def broken():
        raise ImportError("libcudnn.so.9 cannot be loaded\nmore")

    more = (Arm("tensorrt-int8", "int8", None, "no NVIDIA GPU"), Arm("onnxruntime-cuda-fp16", "fp16", broken))
    rows = compared(Runner(log, "torch-fp16"), more=more)
    assert {r["not_run"] for r in rows if "ms" not in r} == {"no NVIDIA GPU", "libcudnn.so.9 cannot be loaded"}
    assert len(rows) == 6


def test_a_shape_that_one_arm_does_not_take_leaves_the_others():
    log = []
    rows = compared(Runner(log, "torch-fp16"), Runner(log, "tensorrt-fp16", fails="load", at=32))
    assert row(rows, "tensorrt-fp16", 32)["not_run"] == "the shapes are outside the profiles"
    assert "ms" in row(rows, "tensorrt-fp16", 1)
    assert "ms" in row(rows, "torch-fp16", 32)


def test_a_call_that_fails_while_it_is_timed_keeps_what_the_others_measured():
    log = []
    rows = compared(Runner(log, "torch-fp16"), Runner(log, "tensorrt-fp16", fails="call"))
    assert row(rows, "tensorrt-fp16", 32)["not_run"] == "an illegal memory access"
    assert row(rows, "torch-fp16", 32)["ms"]["n"] == 3


def test_when_the_time_is_up_nothing_more_is_begun():
    rows = compared(Runner([], "torch-fp16"), plan=Plan(rounds=3, calls=2, seconds=-1.0))
    assert {r["not_run"] for r in rows} == {"the time was up"}


@pytest.mark.parametrize(
    ("vectors", "ms", "agrees", "as_fast"),
    [
        (TRUTH, 1.0, True, True),
        (TRUTH, 3.0, True, False),
        (TRUTH + 0.2, 1.0, False, True),
        (TRUTH * np.nan, 1.0, False, True),
    ],
)
def test_the_bars_are_judged(vectors, ms, agrees, as_fast):
    log = []
    rows = compared(Runner(log, "torch-fp16", 2.0), Runner(log, "tensorrt-fp16", ms, vectors))
    (bar,) = gpu.verdicts(rows)
    assert (bar["agrees"], bar["as_fast"]) == (agrees, {"1": as_fast, "32": as_fast})


def test_a_bar_that_was_not_measured_is_neither_met_nor_missed():
    (bar,) = gpu.verdicts(compared(Runner([], "torch-fp16"), more=(Arm("tensorrt-fp8", "fp8", None, "no GPU"),)))
    assert (bar["agrees"], bar["cosine"], bar["as_fast"]) == (None, None, {"1": None, "32": None})


def test_the_page_prints_not_run_and_why():
    rows = compared(Runner([], "torch-fp16"), more=(Arm("tensorrt-fp8", "fp8", None, "no GPU is here"),))
    conditions = {"device": "d", "versions": {"torch": "2"}, "plan": {"rounds": 3, "calls": 2, "seed": 0}}
    page = gpu.markdown({**conditions, "dry": True, "command": "c", "rows": rows})
    assert "| 32 x 16 | 1.000 [1.000, 1.000] | not run |" in page
    assert "| tensorrt-fp8 | not run | not run | not run | not run |" in page
    assert "- tensorrt-fp8: no GPU is here" in page
    assert "nothing here is a result" in page


def test_the_command_runs_dry_on_a_cpu(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnx")
    torch = pytest.importorskip("torch")
    from benchmarks import gpu_arms
    from deploykit.runtime.manifest import Variant
    from tests.runtime import made

    monkeypatch.setattr(gpu, "_BEGUN", time.monotonic())  # the clock begins with the process, which is the suite's here
    needs = {"compute_capability": "8.9"}
    model = made.save_model(tmp_path / "m.onnx")
    variant = Variant("tensorrt-fp8", "tensorrt", "fp8", "models/fp8.onnx", {}, needs)
    bundle = made.bundle(tmp_path, variants=[(variant, {"models/fp8.onnx": model})], default="")

    class Source:
        device = "cpu"

        def __init__(self, model, device):
            self.module = torch.nn.Linear(3, 4)

        def feeds(self, point):
            return {"input": np.ones((point.batch, 3), np.float32)}

        def reference(self, feeds):
            return self.module(torch.from_numpy(feeds["input"])).detach().numpy()

    monkeypatch.setattr(gpu_arms, "_Source", Source)
    output, page = tmp_path / "r.json", tmp_path / "r.md"
    asked = ["--dry", "--bundle", str(bundle.root), "--model", "m", "--batch", "1", "--length", "4", "--rounds", "2"]
    assert gpu.main([*asked, "--calls", "2", "-o", str(output), "--markdown", str(page)]) == 0
    rows = {r["arm"]: r for r in json.loads(output.read_text())["rows"]}
    assert rows["torch-fp16"]["cosine_mean"] == pytest.approx(1.0)
    assert rows["tensorrt-fp8"]["not_run"] == "a dry run"
    assert rows["onnxruntime-cuda"]["not_run"] == "the bundle has no such variant"
    assert "nothing here is a result" in page.read_text()
    assert "not run" in capsys.readouterr().out
