from collections import Counter

import pytest

from deploykit.measure.noise import MODELS, Simulated, seen
from deploykit.measure.paired import compare

RUNS = 200


def verdicts(model, slower, limit=0.03):
    return Counter(compare(Simulated(MODELS[model], slower, 31 * i), {"a": limit}, i)["a"].status for i in range(RUNS))


@pytest.mark.parametrize("model", MODELS)
def test_false_alarms_are_as_rare_as_promised(model):
    """At most 0.5 % are expected; 5 of 200 would be a chance of one in two thousand then."""
    assert verdicts(model, 0.0)["FAIL"] <= 4


@pytest.mark.parametrize("model", ["dedicated", "quiet runner", "usual runner"])
def test_nothing_changed_passes_where_the_machine_can_tell(model):
    assert verdicts(model, 0.0)["PASS"] >= 0.95 * RUNS


@pytest.mark.parametrize(("model", "least"), [("dedicated", 0.99), ("quiet runner", 0.97), ("usual runner", 0.87)])
def test_five_percent_is_caught(model, least):
    assert verdicts(model, 0.05)["FAIL"] >= least * RUNS


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("slower", [0.03, 0.05])
def test_what_measures_slower_than_its_limit_never_passes(model, slower):
    for i in range(RUNS):
        found = compare(Simulated(MODELS[model], slower, 31 * i), {"a": 0.03}, i)["a"]
        assert found.status != "PASS" or found.change <= 0.03


@pytest.mark.parametrize("model", MODELS)
def test_ten_percent_is_caught_or_called_undecided_and_seldom_passes(model):
    found = verdicts(model, 0.10)
    assert found["PASS"] <= 0.01 * RUNS
    assert found["FAIL"] >= 0.95 * RUNS


def test_a_crowded_machine_says_that_it_cannot_tell():
    assert verdicts("crowded runner", 0.0)["INCONCLUSIVE"] > 0.2 * RUNS


def test_two_percent_of_slowness_is_inside_three():
    assert verdicts("dedicated", 0.02)["FAIL"] == 0


def test_the_interval_covers_the_true_change():
    found = [compare(Simulated(MODELS["usual runner"], 0.05, i), {"a": 0.03}, i)["a"] for i in range(RUNS)]
    covered = sum(c.low <= 0.05 <= c.high for c in found if c.stage == "confirm") / RUNS
    assert covered >= 0.92


def test_a_stored_number_would_not_have_done():
    """One run of the candidate against a number from another day: what the pairs are for."""
    alarms = 0
    for i in range(RUNS):
        stored = Simulated(MODELS["crowded runner"], 0.0, 2 * i)("baseline", ["a"])["a"]
        alarms += Simulated(MODELS["crowded runner"], 0.0, 2 * i + 1)("candidate", ["a"])["a"] > 1.1 * stored
    assert alarms > 0.1 * RUNS


def test_the_same_seed_gives_the_same_noise():
    assert Simulated(MODELS["usual runner"], 0, 5)("candidate", "ab") == Simulated(MODELS["usual runner"], 0, 5)(
        "candidate", "ab"
    )


def report(steal=0.01, low=2000.0, load=1.0):
    clock = None if low is None else {"low": low, "mean": low, "high": 3000.0}
    return {"steal": steal, "frequency": clock, "load": load, "context_switches": {"forced": 10, "wanted": 3}}


def test_what_the_processes_saw_is_summed_up():
    found = seen([report(), report(steal=0.2), report(low=1500.0, load=3.0)])
    assert (found.processes, found.steal, found.steal_max, found.load) == (3, 0.01, 0.2, 1.0)
    assert found.mhz == (1500.0, 3000.0)
    assert "1.0 % of the time stolen (20.0 % at worst)" in found.sentence
    assert "1.5 to 3.0 GHz" in found.sentence


def test_what_the_system_does_not_tell_is_left_out():
    found = seen([report(steal=None, low=None)])
    assert found.steal is None
    assert "stolen" not in found.sentence
    assert "GHz" not in found.sentence
