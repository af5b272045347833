"""A block of calls is warmed up in proportion: a call that takes as long as a block needs no second one."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from deploykit.measure import latency


class Engine:
    """Takes ``seconds`` for a call, and counts the calls."""

    def __init__(self, seconds):
        self.seconds, self.calls = seconds, 0

    def run(self, feeds):
        self.calls += 1
        time.sleep(self.seconds)


@pytest.mark.parametrize(("seconds", "calls", "timed"), [(0.1, 2, 1), (0.03, 4, 1)])
def test_warm_up_ends_with_the_block(seconds, calls, timed):
    engine = Engine(seconds)
    times = latency._block(engine, {})
    assert engine.calls >= calls
    assert engine.calls - len(times) in (1, 2, 3)
    assert len(times) >= timed
    assert min(times) >= seconds * 1000
    if seconds > latency._BLOCK_SECONDS:
        assert (engine.calls, len(times)) == (2, 1)


@pytest.mark.parametrize(("enough", "rounds"), [(0.0, 6), (60.0, latency.ROUNDS)])
def test_slow_models_are_measured_in_as_few_rounds_as_give_an_interval(monkeypatch, enough, rounds):
    monkeypatch.setattr(latency, "_ENOUGH_SECONDS", enough)
    monkeypatch.setattr(
        latency, "open_engine", lambda *given: SimpleNamespace(run=lambda feeds: None, close=lambda: None)
    )
    monkeypatch.setattr(latency, "_block", lambda engine, feeds, warm: [1.0, 2.0, 4.0])
    feeds = {"single": {"x": np.zeros((1, 3))}, "batch": {"x": np.zeros((8, 3))}}
    found = latency.compare([latency.Subject("it", "onnxruntime", Path("m"), {})], None, feeds)["it"]
    assert [found[name]["blocks"] for name in feeds] == [rounds, rounds]
    assert found["single"]["calls"] == 3 * rounds


def test_a_slow_model_is_warmed_up_once(monkeypatch):
    engine = Engine(1.5 * latency._BLOCK_SECONDS)
    engine.close = lambda: None
    monkeypatch.setattr(latency, "open_engine", lambda *given: engine)
    monkeypatch.setattr(latency, "ROUNDS", 3)
    latency.compare([latency.Subject("it", "onnxruntime", Path("m"), {})], None, {"single": {"x": np.zeros((1, 3))}})
    assert engine.calls == 1 + 3
