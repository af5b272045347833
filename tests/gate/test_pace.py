from deploykit.gate.pace import Pace
from deploykit.measure.paired import Rules


def pace(**changes):
    return Pace(**{"rules": Rules(), "process_s": 3.0, "now": lambda: 100.0, "began": 100.0, **changes})


def test_the_estimate_counts_processes_and_takes_their_time():
    assert pace().estimate.startswith("timing takes 20 to 140 processes of about 3 s: 1 minute to 7 minutes")
    assert "40 to 280 processes" in pace(runs=2).estimate
    assert "2 s: 40 s to 5 minutes" in pace(seen_s=[1.0, 3.0]).estimate
    assert "not decided 4 min after the start" in pace(max_minutes=4.0).estimate


def test_a_place_says_how_much_may_come():
    assert pace().place("screen", 2, 10) == "timing, screen: pair 3 of 10, at most 7 minutes more"
    assert pace().place("confirm", 44, 45) == "timing, confirm: pair 45 of 45, at most 2 minutes more"
    assert "at most 14 minutes" in pace().place("screen", 2, 10, runs_left=1)
    assert "at most 30 s" in pace(max_minutes=0.5).place("screen", 2, 10)


def test_no_pair_is_begun_that_would_end_too_late():
    assert not pace().over()
    assert not pace(max_minutes=0.1).over()
    assert pace(max_minutes=0.09).over()
    assert pace(max_minutes=1.0, now=lambda: 155.0).over()
