"""The default of a bundle: the fastest, but not for noise, nor while its vectors change with their batch."""

import pytest

from deploykit.pipeline.default import default_of
from deploykit.runtime.busy import Busy
from deploykit.runtime.manifest import BATCH_DEPENDENT, Variant

QUIET, BUSY = Busy(0.01, 0.0, 0.5), Busy(0.62, 0.0, 3.1)


def variant(name, ms, *, drift=0.0, half=0.01, batch=None, dependent=False):
    row = lambda p50: {"p50_ms": p50, "low_ms": p50 * (1 - half), "high_ms": p50 * (1 + half)}  # noqa: E731
    latency = {"hardware": "0a", "single": row(ms), "batch": row(batch or 10 * ms)}
    lowered = {BATCH_DEPENDENT: True} if dependent else {}
    return Variant(name, "x", name, "m", latency=latency, drift={"terms": {"drift": drift}}, lowered=lowered)


def test_the_fastest_over_the_workloads_is_the_default():
    found = default_of([variant("fp32", 4), variant("int8", 1, drift=0.005, batch=30)], QUIET)
    assert (found.variant, found.why, found.provisional) == ("int8", "the fastest", "")
    assert default_of([variant("fp32", 4), variant("int8", 1, batch=400)], QUIET).variant == "fp32"


def test_what_changes_with_its_batch_is_no_default_while_there_is_another():
    listed = [variant("fp32", 4), variant("int8", 2, drift=0.005), variant("dynamic", 1, dependent=True)]
    found = default_of(listed, QUIET)
    assert found.variant == "int8"
    assert found.why == "the fastest (but dynamic, whose vectors change with their batch)"
    assert default_of(listed[2:], QUIET).variant == "dynamic"


@pytest.mark.parametrize(("ms", "half"), [(1.02, 0.001), (1.2, 0.2)])
def test_of_those_that_are_about_as_fast_the_one_that_drifts_less_is(ms, half):
    found = default_of([variant("int8", 1, drift=0.005, half=half), variant("bf16", ms, drift=1e-5, half=half)], QUIET)
    assert found.variant == "bf16"
    assert found.why == "as fast as int8 as far as the times tell, and drifts least"


@pytest.mark.parametrize("ms", [0.9, 1.0, 1.1, 1.2])
def test_on_a_busy_machine_a_small_lead_changes_nothing_and_the_choice_is_provisional(ms):
    found = default_of([variant("bf16", 1.0, drift=1e-5), variant("int8", ms, drift=0.005)], BUSY)
    assert found.variant == "bf16"
    assert "others took 62 %" in found.provisional
    assert "measured again at the next load: the machine was busy" in found.note


def test_equal_drift_is_decided_by_the_order_and_not_by_the_clock():
    for ms in (0.99, 1.0, 1.01):
        assert default_of([variant("a", 1.0), variant("b", ms)], QUIET).variant == "a"


def test_overlapping_and_wide_intervals_are_provisional():
    overlap = default_of([variant("a", 1.0, half=0.1), variant("b", 1.05, half=0.1)], QUIET)
    assert overlap.provisional == "the intervals of a and b overlap"
    wide = default_of([variant("a", 1.0, half=0.3), variant("b", 9.0)], QUIET)
    assert "wide" in wide.provisional


def test_one_variant_alone_leaves_nothing_to_choose():
    assert default_of([variant("a", 1.0, half=0.5)], BUSY).provisional == ""
    assert default_of([variant("a", 1.0), variant("dynamic", 0.5, dependent=True)], BUSY).provisional == ""
    assert default_of([Variant("a", "x", "fp32", "m")], None) is None
