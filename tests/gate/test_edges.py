"""What a gate must not let through, nor answer untruly: limits on values, vectors that are none, gains not made."""

import re
import shutil

import numpy as np
import pytest

from deploykit import gate as library
from deploykit.errors import BundleError, CheckError, RecipeError
from deploykit.gate import Choices, Timing, timing
from deploykit.measure import process
from deploykit.measure.paired import judge
from tests.gate import made
from tests.gate.conftest import row


def names(result):
    return {found.name: found.status for found in result.rows}


def test_a_task_that_was_asked_for_does_not_vanish(bundles, judged, tmp_path):
    new = bundles("careful", noise=0.02)
    assert "task" not in names(judged(new, budget="standard"))
    found = row(judged(new, budget="standard task<=5"), "task")
    assert (found.status, found.limit) == ("INCONCLUSIVE", "task<=5")
    assert "neither labels nor scored pairs" in found.sentence
    path = tmp_path / "labels.csv"
    path.write_text("\n".join(["text,label", *(f"{text},same" for text in made.texts(100))]) + "\n")
    found = row(judged(new, data=f"{path}#text,label=label", budget="task<=5"), "task")
    assert found.status == "INCONCLUSIVE"
    assert "all labels are the same" in found.sentence


@pytest.fixture
def spoiled(monkeypatch):
    """Changes the vectors of one side as they are read: ``spoiled("candidate", function)``."""
    from deploykit.gate import accuracy

    load = np.load

    def spoil(arm, change):
        read = lambda path, **k: change(load(path, **k)) if arm in str(path) else load(path, **k)  # noqa: E731
        monkeypatch.setattr(accuracy.np, "load", read)

    return spoil


def test_one_vector_of_another_length_fails_where_all_were_of_length_one(bundles, judged, spoiled):
    def one(factor):
        return lambda rows: rows * np.where(np.arange(len(rows)) == 3, factor, 1.0)[:, None].astype(np.float32)

    new = bundles("careful", noise=0.02)
    for factor, says in [(3.0, "input 3: 3 against 1"), (0.0, "input 3: 0 against 1")]:
        spoiled("candidate", one(factor))
        found = row(judged(new), "length")
        assert found.status == "FAIL"
        assert says in found.sentence
        assert "and 1 of other lengths" in found.sentence
        assert "dropped" not in found.sentence
        assert found.figures["worst_input"] == 3
    spoiled("candidate", one(1.003))
    assert row(judged(new), "length").status == "PASS"
    # A vector of zeros in the baseline has no length that could be kept, and hides no normalisation that was lost.
    spoiled("baseline", one(0.0))
    lost = row(judged(bundles("no-norm", normalized=False)), "length")
    assert (lost.status, lost.limit) == ("FAIL", "every length within 0.5 %")
    assert "normalisation was dropped" in lost.sentence
    assert row(judged(new), "length").status == "PASS"


def test_lengths_that_are_free_are_judged_by_their_middle(bundles, judged, spoiled):
    new, old = bundles("no-norm-2", normalized=False, padding_bytes=9), bundles("no-norm", normalized=False)
    spoiled("candidate", lambda rows: rows * np.where(np.arange(len(rows)) == 3, 3, 1)[:, None].astype(np.float32))
    assert row(judged(new, old), "length").status == "PASS"


def test_a_baseline_that_is_not_finite_is_no_verdict_on_the_candidate(bundles, judged, spoiled, clock, monkeypatch):
    spoiled("baseline", lambda rows: rows * np.nan)
    with pytest.raises(BundleError, match=r"nothing to compare with: .* the baseline .* of input 0 is not finite"):
        judged(bundles("careful", noise=0.02))
    spoiled("baseline", lambda rows: rows)
    broken(monkeypatch, "baseline")
    with pytest.raises(BundleError, match=r"nothing to compare with: the baseline .* not finite"):
        judged(bundles("careful", noise=0.02))


def broken(monkeypatch, which):
    """The timed processes of one side find vectors that are not finite."""
    measure = process.measure

    def spoiled(job, arm, **settings):
        if arm.split()[1] == which:
            raise CheckError(f"{arm}: variant 'v' returned values that are not finite", hint="check it")
        return measure(job, arm, **settings)

    monkeypatch.setattr(process, "measure", spoiled)


def test_what_is_not_finite_when_timed_is_a_row(bundles, judged, clock, monkeypatch):
    broken(monkeypatch, "candidate")
    result = judged(bundles("careful", noise=0.02), everything=True)
    found = row(result, "times")
    assert (result.status, found.status, found.look) == ("FAIL", "FAIL", "check it")
    assert found.sentence.count("the candidate") == 1
    assert "not finite" in found.sentence


def test_a_process_has_more_time_where_it_makes_more_calls(bundles, judged, clock, monkeypatch):
    given = []
    measure = process.measure

    def heard(job, arm, *, python=None, timeout_s=0):
        given.append(timeout_s)
        return measure(job, arm, python=python, timeout_s=timeout_s)

    monkeypatch.setattr(process, "measure", heard)
    bounds = Timing(seconds=0.0, calls=331, timeout_s=10.0)
    judged(bundles("careful", noise=0.02), budget="p99<=+3%", timing=bounds)
    assert set(given) == {20.0}
    given.clear()
    judged(bundles("careful", noise=0.02), budget="p50<=+3%", timing=bounds)
    assert set(given) == {10.0}


def test_throughput_answers_for_the_batch_alone(bundles, judged, clock):
    clock.set((4.0, 20.0), (5.0, 20.0))
    result = judged(bundles("careful", noise=0.02), budget="throughput>=-3%")
    assert (row(result, "single p50").status, row(result, "batch throughput").status) == ("FAIL", "PASS")
    assert "batch p50" not in names(result)
    both = judged(bundles("careful", noise=0.02), budget="throughput>=-3% p50<=+50%")
    assert {"single p50", "batch p50", "batch throughput"} <= set(names(both))
    alone = judged(bundles("careful", noise=0.02), budget="throughput>=-3%", workload="batch")
    assert [name for name in names(alone) if name.startswith("batch")] == ["batch throughput"]


def test_the_sentence_says_what_was_asked_for(bundles, judged, clock):
    clock.set((4.0, 20.0), (3.8, 19.0))
    found = row(judged(bundles("careful", noise=0.02), budget="p50<=-20%"), "single p50")
    assert found.status == "FAIL"
    assert "too small a gain for sure" in found.sentence
    assert "-20.0 % is demanded" in found.sentence
    assert "slower" not in found.sentence
    unsure = judge("single p50", 0.03, [(1.0, 0.99)] * 8 + [(1.0, 1.05)] * 22, "confirm", 0.005)
    assert "that is more than is allowed, and not sure (at least -1.0 %, one-sided" in timing._reason(unsure)


def test_the_same_bits_are_still_held_to_limits_on_the_value(bundles, judged, clock, tmp_path):
    copied = tmp_path / "copy.bundle"
    shutil.copytree(bundles(), copied)
    clock.set((4.0, 20.0), (4.0, 20.0))
    for budget, failed in [
        ("size<=1KB", ["size"]),
        ("p50<=5ms", ["batch p50"]),
        ("p50<=-20%", ["single p50", "batch p50"]),
        ("memory<=50MB", ["memory"]),
    ]:
        result = judged(copied, budget=budget)
        assert [found.name for found in result.rows if found.status == "FAIL"] == failed
        assert "limits on a change were not looked at" in result.skipped[-1]
    result = judged(copied, budget="p50<=30ms size<=1GB")
    assert (result.status, names(result)["batch p50"]) == ("PASS", "PASS")
    clock.asked.clear()
    assert judged(copied, budget="strict task<=5 p50<=+3% throughput>=-3%").skipped[0].startswith("nothing")
    assert clock.asked == []


def test_the_same_bits_that_lost_their_int8_fail(bundles, judged, clock, tmp_path):
    copied = tmp_path / "copy.bundle"
    settings = {"graph_optimization": "off"}
    shutil.copytree(bundles("int8-unfused", int8=True, settings=settings), copied)
    result = judged(copied, bundles("int8-unfused", int8=True, settings=settings))
    assert (result.status, names(result)) == ("FAIL", {"audit": "FAIL"})
    assert clock.asked == []


@pytest.mark.parametrize(
    ("budget", "says"),
    [
        ("p50<=5ms", "p50<=5ms is on the time itself"),
        ("p99<=9ms", "is on the time itself"),
        ("throughput>=500", "is on the time itself"),
        ("p50<=-10%", "p50<=-10% asks for a gain"),
        ("throughput>=+10%", "asks for a gain"),
    ],
)
def test_limits_without_false_alarms_are_refused_before_any_clock_runs(bundles, clock, budget, says):
    with pytest.raises(RecipeError, match=re.escape(says)) as found:
        library.aa(bundles(), 1, Choices(budget=budget))
    assert "p50<=+3%" in found.value.hint
    assert clock.asked == []


def test_sizes_do_not_stand_in_the_way_of_counting_false_alarms(bundles, clock, inside):
    assert library.aa(bundles(), 1, Choices(budget="size<=60MB throughput>=-5%", threads=1)).count("PASS") == 1
