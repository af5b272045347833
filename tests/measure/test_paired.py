import itertools
import math

import pytest

from deploykit.measure import paired
from deploykit.measure.stats import interval_rank, median


def steady(slower=0.0, spread=0.0):
    """A source without chance: the candidate is slower by ``slower``, every value moved by up to ``spread``."""
    count = itertools.count()

    def source(arm, metrics):
        move = math.sin(7.0 * next(count)) * spread
        return dict.fromkeys(metrics, 10.0 * (1 + move) * (1 + slower if arm == "candidate" else 1))

    return source


def recorded(source):
    calls = []

    def recording(arm, metrics):
        calls.append((arm, tuple(metrics)))
        return source(arm, metrics)

    return recording, calls


def logs(*changes):
    return [(1.0, math.exp(change)) for change in changes]


def test_no_sign_of_a_regression_ends_with_the_screen():
    source, calls = recorded(steady(0.0))
    found = paired.compare(source, {"a": 0.03})["a"]
    assert (found.status, found.stage, found.pairs, len(calls)) == ("PASS", "screen", 10, 20)
    assert found.change == pytest.approx(0)


def test_every_pair_has_both_arms_in_an_order_that_the_seed_decides():
    def orders(seed):
        source, calls = recorded(steady(0.1))
        paired.compare(source, {"a": 0.03}, seed)
        arms = [arm for arm, _ in calls]
        pairs = list(zip(arms[::2], arms[1::2], strict=True))
        assert all(set(pair) == set(paired.ARMS) for pair in pairs)
        return pairs

    assert orders(1) == orders(1) != orders(2)
    first = [pair[0] for pair in orders(3)]
    assert 10 < first.count("baseline") < 30


def test_a_regression_is_confirmed_on_new_pairs_alone():
    source, calls = recorded(steady(0.05))
    found = paired.compare(source, {"a": 0.03})["a"]
    assert (found.status, found.stage, found.pairs) == ("FAIL", "confirm", 30)
    assert len(calls) == 2 * (10 + 30)
    assert found.change == pytest.approx(0.05)


def test_the_screens_pairs_are_thrown_away():
    count = itertools.count()

    def unlucky(arm, metrics):
        bad = next(count) < 20 and arm == "candidate"
        return dict.fromkeys(metrics, 20.0 if bad else 10.0)

    found = paired.compare(unlucky, {"a": 0.03})["a"]
    assert (found.status, found.stage, found.change) == ("PASS", "confirm", 0)


def test_a_metric_that_passed_is_not_measured_again():
    def source(arm, metrics):
        return {name: 10.0 * (1.1 if (arm, name) == ("candidate", "slow") else 1) for name in metrics}

    source, calls = recorded(source)
    found = paired.compare(source, {"slow": 0.03, "same": 0.03})
    assert {name: c.status for name, c in found.items()} == {"slow": "FAIL", "same": "PASS"}
    assert {metrics for _, metrics in calls[:20]} == {("slow", "same")}
    assert {metrics for _, metrics in calls[20:]} == {("slow",)}


def test_more_pairs_are_taken_while_the_interval_is_wide():
    found = paired.compare(steady(0.05, spread=0.2), {"a": 0.03})["a"]
    assert found.pairs == 60
    assert found.half_width > 0.02


@pytest.mark.parametrize(("slower", "status"), [(0.0149, "PASS"), (0.0155, "INCONCLUSIVE")])
def test_the_screen_passes_up_to_half_the_limit(slower, status):
    assert paired.judge("a", 0.03, [(1.0, 1 + slower)] * 10, "screen", 0.005).status == status


def test_a_wide_screen_does_not_pass():
    wide = logs(*[-0.05] * 3, *[0.0] * 4, *[0.05] * 3)
    assert paired.judge("a", 0.03, wide, "screen", 0.005).status == "INCONCLUSIVE"


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ([0.05] * 30, "FAIL"),
        ([0.029] * 30, "PASS"),  # sure, and less than what matters
        ([-0.01] * 8 + [0.05] * 22, "INCONCLUSIVE"),  # the 8th lowest is not above 0, and the median is above 3 %
        ([-0.01] * 8 + [0.029] * 22, "PASS"),
        ([-0.01] * 7 + [0.05] * 23, "FAIL"),
        ([-0.08] * 12 + [0.08] * 18, "INCONCLUSIVE"),
    ],
)
def test_a_fail_is_sure_and_large(changes, status):
    assert paired.judge("a", 0.03, logs(*changes), "confirm", 0.005).status == status


def test_the_risk_is_shared_by_the_metrics():
    changes = logs(*[-0.01] * 7, *[0.05] * 23)
    assert paired.judge("a", 0.03, changes, "confirm", 0.005).status == "FAIL"
    assert paired.judge("a", 0.03, changes, "confirm", 0.005 / 4).status != "FAIL"
    assert interval_rank(30, 0.005 / 4) < interval_rank(30, 0.005)

    def status(count):
        calls = itertools.count()

        def source(arm, metrics):
            faster = 10 <= next(calls) // 2 < 17  # seven of the thirty that confirm
            return dict.fromkeys(metrics, 10.0 * (1 if arm == "baseline" else 0.99 if faster else 1.05))

        found = paired.compare(source, dict.fromkeys("abcd"[:count], 0.03), rules=paired.Rules(confirm=(30,)))
        return found["a"].status

    assert (status(1), status(4)) == ("FAIL", "INCONCLUSIVE")


def test_a_median_above_the_limit_that_is_not_sure_takes_more_pairs_and_never_passes():
    def found(faster):
        calls = itertools.count()

        def source(arm, metrics):
            lucky = next(calls) // 2 >= 10 and next(turn) // 2 in faster
            return dict.fromkeys(metrics, 10.0 * (1 if arm == "baseline" else 0.999 if lucky else 1.031))

        turn = itertools.count()
        return paired.compare(source, {"a": 0.03})["a"]

    few, many = found(range(8)), found({i for i in range(60) if i % 5 < 2})
    assert (few.status, few.pairs) == ("FAIL", 45)
    assert (many.status, many.pairs) == ("INCONCLUSIVE", 60)
    assert many.half_width < 0.02 < 0.03 < many.change


def test_a_limit_of_zero_or_below_asks_for_a_gain():
    def status(change):
        return paired.compare(steady(change), {"a": -0.1})["a"].status

    assert status(-0.2) == "PASS"
    assert status(-0.05) == "FAIL"
    assert status(0.05) == "FAIL"
    hovering = paired.compare(steady(-0.1, spread=0.1), {"a": -0.1})["a"]
    assert (hovering.status, hovering.pairs) == ("INCONCLUSIVE", 60)


def test_what_is_faster_for_sure_passes_however_noisy():
    found = paired.compare(steady(-0.5, spread=0.2), {"a": 0.03})["a"]
    assert (found.status, found.pairs) == ("PASS", 10)
    assert found.half_width > 0.03
    assert found.ceiling < 0
    mixed = logs(*[-0.3] * 13, *[-0.1] * 17)
    assert paired.judge("a", 0.03, mixed, "confirm", 0.005).status == "PASS"
    assert paired.judge("a", 0.03, [*mixed[:-8], *logs(*[0.01] * 8)], "confirm", 0.005).status == "INCONCLUSIVE"


def test_a_metric_without_a_limit_on_its_change_is_screened_and_passes():
    found = paired.compare(steady(0.5), {"a": math.inf})["a"]
    assert (found.status, found.pairs) == ("PASS", 10)


def test_no_metrics_no_processes():
    assert paired.compare(steady(), {}) == {}


def test_too_few_pairs_for_the_confidence_never_pass_a_screen():
    found = paired.judge("a", 0.03, [(1.0, 1.0)] * 4, "screen", 0.005)
    assert (found.status, found.half_width, found.bound) == ("INCONCLUSIVE", math.inf, -math.inf)


def test_the_values_that_decided_are_kept():
    found = paired.compare(steady(0.1), {"a": 0.03})["a"]
    assert found.of("candidate").value / found.of("baseline").value == pytest.approx(1.1)
    assert median(found.candidate).n == found.pairs


def test_progress_tells_the_stage_and_the_pair():
    heard = []
    paired.compare(steady(0.1), {"a": 0.03}, on_progress=lambda *said: heard.append(said))
    assert heard[0] == ("screen", 0, 10)
    assert heard[10] == ("confirm", 0, 30)
    assert heard[-1] == ("confirm", 29, 30)


def ends_after(pairs):
    """Says that the time is up before pair number ``pairs``."""
    asked = itertools.count(1)  # it is not asked before the first
    return lambda: next(asked) >= pairs


@pytest.mark.parametrize("pairs", [1, 4, 9])
def test_a_screen_that_was_cut_short_decides_nothing(pairs):
    source, calls = recorded(steady(0.0))
    found = paired.compare(source, {"a": 0.03, "b": math.inf}, over=ends_after(pairs))
    assert {(c.status, c.cut, c.pairs) for c in found.values()} == {("INCONCLUSIVE", True, pairs)}
    assert len(calls) == 2 * pairs


@pytest.mark.parametrize(("pairs", "stage", "kept"), [(10, "screen", 10), (11, "confirm", 1), (39, "confirm", 29)])
def test_a_confirmation_that_was_cut_short_is_no_regression_yet(pairs, stage, kept):
    found = paired.compare(steady(0.5), {"a": 0.03}, over=ends_after(pairs))["a"]
    assert (found.status, found.cut, found.stage, found.pairs) == ("INCONCLUSIVE", True, stage, kept)


def test_what_a_whole_stage_decided_stands_when_the_time_is_up():
    def source(arm, metrics):
        return {name: 10.0 * (1.1 if (arm, name) == ("candidate", "slow") else 1) for name in metrics}

    found = paired.compare(source, {"slow": 0.03, "same": 0.03}, over=ends_after(15))
    assert {name: (c.status, c.cut) for name, c in found.items()} == {
        "slow": ("INCONCLUSIVE", True),
        "same": ("PASS", False),
    }
    wide = paired.compare(steady(0.2, spread=0.2), {"a": 0.03}, over=ends_after(45))["a"]
    assert (wide.status, wide.pairs, wide.cut) == ("FAIL", 30, False)
