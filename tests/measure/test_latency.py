"""A block of calls is warmed up in proportion: a call that takes as long as a block needs no second one."""

from __future__ import annotations

import time

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
