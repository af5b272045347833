import math

import pytest

from deploykit.budget import PROFILES, TERMS, Budget, Limit, judge
from deploykit.errors import RecipeError


def values(text):
    return {(limit.term, limit.relative): limit.value for limit in Budget.parse(text).limits}


def test_limits_are_read_in_the_units_of_the_figures():
    assert values("drift<=0.01 p50<=4ms size<=60MB p50<=+3%") == {
        ("drift", False): 0.01,
        ("p50", False): 4.0,
        ("size", False): 60e6,
        ("p50", True): pytest.approx(0.03),
    }


@pytest.mark.parametrize(
    ("text", "term", "value"),
    [
        ("p50<=800us", "p50", 0.8),
        ("p99<=0.5s", "p99", 500.0),
        ("p50 <= 4 ms", "p50", 4.0),
        ("p50≤4ms", "p50", 4.0),
        ("size<=1.5 GiB", "size", 1.5 * 2**30),
        ("memory<=20kb", "memory", 20_000),
        ("size<=512B", "size", 512),
        ("throughput>=500", "throughput", 500),
        ("throughput>=500/s", "throughput", 500),
        ("drift<=1e-3", "drift", 0.001),
        ("p1>=.97", "p1", 0.97),
        ("task<=0", "task", 0.0),
    ],
)
def test_units_and_spellings(text, term, value):
    assert values(text) == {(term, False): pytest.approx(value)}


def test_commas_separate_too():
    assert values("drift<=0.01, size<=60 MB; p1>=0.9") == values("drift<=0.01 size<=60MB p1>=0.9")


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_the_text_that_it_stands_for(name):
    assert Budget.parse(name) == Budget.parse(PROFILES[name])


def test_profiles_go_from_strict_to_lenient():
    strict, standard, edge = (values(name) for name in ("strict", "standard", "edge"))
    for tighter, looser in ((strict, standard), (standard, edge)):
        assert tighter["drift", False] < looser["drift", False]
        assert tighter["p1", False] > looser["p1", False]
        assert tighter["task", False] < looser["task", False]


def test_later_terms_override_earlier_ones_and_a_change_is_another_limit():
    found = values("standard size<=30MB drift<=0.02 size<=20MB size<=-50%")
    assert found["drift", False] == 0.02
    assert found["size", False] == 20e6
    assert found["size", True] == -0.5
    assert found["p1", False] == 0.975
    assert values("drift<=0.5 strict")["drift", False] == 0.001


@pytest.mark.parametrize("text", ["strict p50 <= 4 ms", "throughput>=-3% memory<=1.5GiB", "edge, size<=+0%", "p50≤4ms"])
def test_text_goes_there_and_back(text):
    budget = Budget.parse(text)
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the budget is empty"),
        ("drfit<=0.01", "did you mean 'drift'"),
        ("drfit<=0.01", "terms: drift, p1, task, p50, p99, throughput, size, memory; profiles: strict"),
        ("standart", "did you mean 'standard'"),
        ("<=0.01", "names no term"),
        ("drift", "has no limit"),
        ("drift>=0.01", "is limited with <=, not >="),
        ("p1<=0.9", "is limited with >=, not <="),
        ("drift<0.01", "not <"),
        ("size=60MB", "not ="),
        ("drift<=", "the number is missing"),
        ("drift<=small", "'small' is no number"),
        ("drift<=1e999", "is no number"),
        ("p50<=4", "has no unit"),
        ("p50<=4MB", "has the unit 'MB'"),
        ("p50<=4MB", "us, ms, s"),
        ("size<=60", "B, KB, MB, GB, KiB, MiB, GiB"),
        ("drift<=0.01ms", "has the unit 'ms'"),
        ("drift<=1%", "a change needs its sign"),
        ("p50<=3%", "a change needs its sign"),
        ("p50<=-100%", "100 % below"),
        ("p1>=97.5", "at most 1"),
        ("drift<=-0.1", "at least 0"),
    ],
)
def test_what_is_wrong_is_said_once_and_with_the_way_out(text, says):
    with pytest.raises(RecipeError) as caught:
        Budget.parse(text)
    assert says in str(caught.value)
    assert caught.value.hint


def test_every_example_is_a_limit_of_its_term():
    for name, term in TERMS.items():
        (limit,) = Budget.parse(term.example).limits
        assert (limit.term, limit.operator) == (name, term.operator)


def test_only_keeps_the_terms_asked_for():
    assert str(Budget.parse("standard size<=30MB").only(["size", "drift"])) == "drift<=0.01 size<=30MB"


def test_figures_are_judged_limit_by_limit():
    budget = Budget.parse("drift<=0.01 p1>=0.975 p50<=4ms throughput>=500")
    rows = judge(budget, {"drift": 0.01, "p1": 0.9, "p50": 4.1})
    assert [(row.term, row.ok) for row in rows] == [
        ("drift", True),
        ("p1", False),
        ("p50", False),
        ("throughput", None),
    ]
    assert rows[2].sentence == "p50 is 4.1 ms, outside p50<=4ms."
    assert "was not measured" in rows[3].sentence


@pytest.mark.parametrize(
    ("limit", "measured", "ok"),
    [("p50<=+3%", 4.11, True), ("p50<=+3%", 4.13, False), ("p50<=-20%", 3.19, True), ("p50<=-20%", 3.21, False)],
)
def test_a_change_is_held_against_the_baseline(limit, measured, ok):
    (row,) = judge(Budget.parse(limit), {"p50": measured}, {"p50": 4.0})
    assert (row.ok, row.measured, row.limit_text) == (ok, measured, limit)
    assert "against 4 ms" in row.sentence


def test_throughput_may_fall_by_so_much():
    budget = Budget.parse("throughput>=-3%")
    assert judge(budget, {"throughput": 97.5}, {"throughput": 100.0})[0].ok is True
    assert judge(budget, {"throughput": 96.5}, {"throughput": 100.0})[0].ok is False


@pytest.mark.parametrize("baseline", [None, {}, {"p50": 0.0}])
def test_a_change_without_a_baseline_is_not_judged(baseline):
    (row,) = judge(Budget.parse("p50<=+3%"), {"p50": 4.0}, baseline)
    assert row.ok is None
    assert "could not be judged" in row.sentence


def test_a_figure_that_is_no_number_never_passes():
    assert not Limit("drift", 0.01, False, "drift<=0.01").holds(math.nan)
    assert judge(Budget.parse("p1>=0.9"), {"p1": math.nan})[0].ok is False
