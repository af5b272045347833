"""Times and memory from pairs of processes, and the time that they may take."""

import pytest

from deploykit import gate as library
from deploykit.errors import RecipeError
from deploykit.gate import Choices, Timing
from deploykit.gate.pace import Pace
from tests.gate.conftest import row


def test_memory_that_differs_from_process_to_process_is_judged_by_its_interval(bundles, judged, clock):
    """Equal models whose first ten processes came out 2.2 % apart, as once on a real machine, and then 0.0 %."""
    new = bundles("careful", noise=0.02)
    clock.set((4.0, 20.0), (4.0, 20.0))
    clock.rss = lambda arm, pair: 102.2 if arm == "candidate" and pair < 10 and pair % 3 else 100.0
    found = row(judged(new), "memory")
    assert (found.status, found.figures["stage"], found.figures["pairs"]) == ("PASS", "confirm", 30)
    assert "+0.0 % [+0.0 %, +0.0 %] over 30 pairs" in found.sentence
    clock.rss = lambda arm, pair: 100.0 + (0 if arm == "baseline" else (-8, 3, 9)[pair % 3])
    found = row(judged(new), "memory")
    assert (found.status, found.figures["pairs"]) == ("INCONCLUSIVE", 60)
    assert "cannot tell" in found.sentence
    clock.rss = lambda arm, pair: 104.0 if arm == "candidate" else 100.0 + pair % 2
    found = row(judged(new), "memory")
    assert found.status == "FAIL"
    assert "larger for sure (at least +3.0 %" in found.sentence
    assert len(found.figures["candidate_mib"]) == found.figures["pairs"]


def test_a_wide_p50_alone_is_timed_alone_and_wide_memory_with_every_workload(bundles, judged, clock):
    clock.set((4.0, 20.0), (4.5, 20.0))
    judged(bundles("careful", noise=0.02))
    assert [len(job["points"]) for _, job, _ in clock.asked] == [2] * 20 + [1] * 60
    clock.asked.clear()
    clock.set((4.0, 20.0), (4.0, 20.0), rss=(100, 110))
    judged(bundles("careful", noise=0.02))
    assert {len(job["points"]) for _, job, _ in clock.asked} == {2}


def test_the_time_that_is_given_ends_the_clock_undecided(bundles, judged, clock, monkeypatch):
    monkeypatch.setattr(Pace, "over", lambda self: self.max_minutes is not None and len(clock.asked) >= 8)
    result = judged(bundles("careful", noise=0.02), max_minutes=5.0)
    assert result.status == "INCONCLUSIVE"
    assert len(clock.asked) == 8
    assert "the time was up after 4 pairs" in row(result, "single p50").sentence
    assert row(result, "memory").status == "INCONCLUSIVE"
    assert result.notes == ("timing stopped: the 5 min of --max-minutes were up; what was not decided is INCONCLUSIVE",)
    with pytest.raises(RecipeError, match="expected more than 0"):
        judged(bundles("careful", noise=0.02), max_minutes=-1.0)


def test_runs_against_itself_end_with_the_time(bundles, clock, inside, monkeypatch):
    monkeypatch.setattr(Pace, "over", lambda self: len(clock.asked) >= 50)
    choices = Choices(threads=1, timing=Timing(seconds=0.0, calls=3), max_minutes=5.0)
    said = []
    found = library.aa(bundles(), 12, choices, on_estimate=said.append)
    assert (found.runs, found.asked, found.stopped, len(said)) == (2, 12, True, 1)
    assert "0 false alarms in 2 runs" in found.sentence
    assert "240 to 1680 processes" in said[0]
