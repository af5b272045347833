"""What is handed over: never what is outside the budget, never what measured slower than another one inside it."""

import itertools
import random

import pytest

from deploykit.budget import Budget
from deploykit.pipeline.choose import Candidate, choose

NONE = Budget(())


def candidate(precision, ms, *, drift=0.0, size=10e6, half=0.01, target="openvino", asked=False, **more):
    figures = {"p50": ms, "throughput": 32_000 / ms, "drift": drift, "size": size}
    name = f"{target}-{precision}" + ("-partial" if more.get("partial") else "")
    return Candidate(name, target, precision, figures, ms * (1 - half), ms * (1 + half), asked, **more)


def reasons(choice):
    return {d.candidate.name: (d.kept, d.reason) for d in choice.decisions}


def test_auto_takes_the_fastest():
    found = choose([candidate("fp32", 10), candidate("bf16", 5), candidate("int8", 4)], NONE, auto=True)
    assert found.kept == ("openvino-int8",)
    assert reasons(found)["openvino-int8"][1].startswith(
        "the fastest inside the budget: 1.25x as fast as openvino-bf16"
    )
    assert reasons(found)["openvino-bf16"] == (False, "inside the budget, 1.25x the time of openvino-int8")


def test_auto_takes_what_drifts_less_where_the_clock_cannot_tell():
    listed = [candidate("bf16", 4.05, drift=1e-5, half=0.03), candidate("int8", 4.0, drift=0.005, half=0.03)]
    found = choose(listed, NONE, auto=True)
    assert found.kept == ("openvino-bf16",)
    assert "as fast as openvino-int8 within the intervals, and drifts less" in reasons(found)["openvino-bf16"][1]


def test_what_is_outside_the_budget_is_never_taken_however_fast():
    fault = ("The drift is 0.02000 over 512 inputs; outside drift<=0.01.",)
    listed = [candidate("fp32", 10), candidate("int8", 2, drift=0.02, faults=fault)]
    found = choose(listed, Budget.parse("drift<=0.01"), auto=True)
    assert found.kept == ("openvino-fp32",)
    assert reasons(found)["openvino-int8"] == (False, fault[0])


def test_a_limit_on_time_is_held_against_fp32_of_the_same_target():
    listed = [
        candidate("fp32", 10),
        candidate("int8", 9.9),
        candidate("fp32", 2, target="onnxruntime"),
        candidate("int8", 1, target="onnxruntime"),
    ]
    found = choose(listed, Budget.parse("p50<=-20%"), auto=True)
    assert found.kept == ("onnxruntime-int8",)
    assert found.empty_targets == ("openvino",)


def test_a_limit_that_was_not_measured_is_not_met():
    missing = Candidate("openvino-int8", "openvino", "int8", {"size": 1.0}, float("nan"), float("nan"), True)
    found = choose([missing], Budget.parse("p50<=4ms"), auto=False)
    assert found.kept == ()
    assert "was not measured" in reasons(found)["openvino-int8"][1]


def test_an_asked_variant_outside_is_refused_unless_a_partial_one_stands_in():
    fault = ("drifts too much",)
    whole = candidate("int8", 2, faults=fault, asked=True)
    alone = choose([candidate("fp32", 5), whole], Budget.parse("drift<=0.01"), auto=False)
    assert [d.refused for d in alone.decisions] == [False, True]
    partial = candidate("int8", 3, partial=True)
    found = choose([candidate("fp32", 5), whole, partial], Budget.parse("drift<=0.01"), auto=False)
    assert found.kept == ("openvino-int8-partial",)
    assert not any(d.refused for d in found.decisions)


def test_without_a_budget_all_that_was_asked_for_is_kept():
    found = choose([candidate("fp32", 5, asked=True), candidate("bf16", 9, asked=True)], NONE, auto=False)
    assert found.kept == ("openvino-fp32", "openvino-bf16")


@pytest.mark.parametrize("seed", range(200))
def test_auto_never_takes_what_measured_slower_than_another_inside(seed):
    """The times come from a script instead of a clock: every order of candidates, with random figures."""
    draw = random.Random(seed)
    listed = [
        candidate(
            precision,
            draw.choice([1, 2, 2.01, 3, draw.uniform(1, 4)]),
            drift=draw.choice([0, 0.001, 0.02]),
            half=draw.choice([0.001, 0.01, 0.1]),
            faults=draw.choice([(), ("outside",)]),
        )
        for precision in ("fp32", "bf16", "fp16", "int8")
    ]
    inside = [c for c in listed if not c.faults]
    for order in itertools.permutations(listed):
        kept = choose(order, NONE, auto=True).kept
        assert len(kept) == (1 if inside else 0)
        taken = [c for c in inside if c.name in kept]
        assert len(taken) == len(kept)
        assert not any(other.high_ms < t.low_ms for t in taken for other in inside)


def untimed(**more):
    figures = {"size": 9.0}
    return Candidate("tensorrt-fp16", "tensorrt", "fp16", figures, float("nan"), float("nan"), asked=False, **more)


def test_what_could_not_run_here_is_kept_beside_the_fastest():
    timed = candidate("fp32", 4.0, target="tensorrt")
    decided = choose([timed, untimed(ran=False)], Budget(()), auto=True)
    assert set(decided.kept) == {"tensorrt-fp32", "tensorrt-fp16"}
    assert choose([untimed(ran=False)], Budget(()), auto=True).kept == ("tensorrt-fp16",)


def test_what_ran_and_was_not_timed_is_not_taken_by_auto():
    found = choose([untimed()], Budget(()), auto=True)
    assert found.kept == ()
    assert reasons(found)["tensorrt-fp16"] == (False, "inside the budget, and was not timed")


def test_more_and_less_drift_are_only_claimed_where_they_are():
    equal = [candidate("bf16", 4.05, drift=0.005, half=0.03), candidate("int8", 4.0, drift=0.005, half=0.03)]
    said = reasons(choose(equal, NONE, auto=True))
    assert said["openvino-int8"] == (True, "as fast as openvino-bf16 within the intervals")
    assert said["openvino-bf16"] == (False, "inside the budget, no faster than openvino-int8 within the intervals")
    more = [candidate("bf16", 4.05, drift=1e-5, half=0.03), candidate("int8", 4.0, drift=0.005, half=0.03)]
    assert reasons(choose(more, NONE, auto=True))["openvino-int8"][1].endswith("within the intervals, and drifts more")


def test_a_wide_interval_is_not_taken_for_one_that_reaches_below_a_sharp_one():
    """The noisy one reaches down to the fastest, which is noisy too, and is slower than the sharp one for certain."""
    fastest = Candidate("a", "openvino", "int8", {"p50": 2.0, "drift": 0.01}, 1.0, 3.0, False)
    sharp = Candidate("b", "openvino", "bf16", {"p50": 2.1, "drift": 0.005}, 2.09, 2.11, False)
    noisy = Candidate("c", "openvino", "fp32", {"p50": 4.0, "drift": 0.0}, 2.9, 5.0, False)
    found = choose([fastest, sharp, noisy], NONE, auto=True)
    assert found.kept == ("b",)
    assert reasons(found)["c"] == (False, "inside the budget, 1.90x the time of b")


def test_what_changes_with_its_batch_is_not_taken_while_another_is_inside():
    listed = [candidate("fp32", 10), candidate("int8", 5), candidate("int8-dynamic", 2, batch_dependent=True)]
    found = choose(listed, NONE, auto=True)
    assert found.kept == ("openvino-int8",)
    assert "2.00x as fast as openvino-fp32" in reasons(found)["openvino-int8"][1]
    assert "change with their batch: openvino-int8 is taken" in reasons(found)["openvino-int8-dynamic"][1]


def test_what_changes_with_its_batch_is_taken_where_nothing_else_is_inside():
    listed = [candidate("fp32", 10, faults=("too slow",)), candidate("int8-dynamic", 2, batch_dependent=True)]
    assert choose(listed, NONE, auto=True).kept == ("openvino-int8-dynamic",)


def test_auto_takes_the_fastest_that_lies_inside_and_says_that_it_was_not_judged():
    listed = [candidate("fp32", 10), candidate("bf16", 2, unsure=("459 inputs are needed.",)), candidate("int8", 4)]
    found = choose(listed, NONE, auto=True)
    assert found.kept == ("openvino-bf16",)
    assert reasons(found)["openvino-bf16"][1].endswith("; not judged: 459 inputs are needed.")
    assert reasons(found)["openvino-int8"] == (False, "inside the budget, 2.00x the time of openvino-bf16")
