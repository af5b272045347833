import math

import numpy as np
import pytest

from deploykit.drift import intervals


def test_the_interval_of_a_skewed_mean_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    truth, misses, above, below = math.exp(0.5), 0, 0, 0
    for _ in range(1000):
        figure = intervals.of_mean("x", rng.lognormal(0, 1, 200))
        misses += not figure.low <= truth <= figure.high
        above += figure.upper99 < truth
        below += figure.lower99 > truth
    assert 30 <= misses <= 75
    # A plain t interval ends too early on the side of the long tail 35 times in 1,000.
    assert above <= 26
    assert below <= 20


def test_equal_values_have_a_mean_without_doubt():
    figure = intervals.of_mean("x", np.full(20, 0.25))
    assert (figure.value, figure.low, figure.high, figure.upper99) == (0.25, 0.25, 0.25, 0.25)


def test_too_few_values_have_no_interval():
    for figure in (
        intervals.of_mean("x", np.arange(10.0)),
        intervals.of_accuracies("x", np.ones(10, bool), np.ones(10, bool)),
        intervals.of_draws("x", 1.0, 10, np.arange(100.0), (2.0, 3.0)),
    ):
        assert (figure.low, figure.high, figure.lower99, figure.upper99) == (None, None, None, None)


@pytest.mark.parametrize(("degrees", "expected"), [(10, 2.763769), (20, 2.527977), (100, 2.364217)])
def test_quantiles_of_students_t(degrees, expected):
    assert intervals.student_t(0.99, degrees) == pytest.approx(expected, abs=1e-4)
    assert intervals.student_t(0.01, degrees) == pytest.approx(-expected, abs=1e-4)


def test_a_bound_below_the_first_percentile_takes_459_values():
    # 0.99^458 = 0.01002 and 0.99^459 = 0.00992.
    assert [intervals.lower_rank(n, 0.01, 0.01) for n in (458, 459)] == [0, 1]
    assert intervals.lower_rank(100_000, 0.01, 0.01) == pytest.approx(927, abs=3)


def test_ranks_are_the_binomials():
    def at_least(k, n):
        return sum(math.comb(n, i) * 0.01**i * 0.99 ** (n - i) for i in range(k, n + 1))

    rank = intervals.upper_rank(100, 0.01, 0.01)
    assert at_least(rank, 100) <= 0.01 < at_least(rank - 1, 100)
    assert intervals.upper_rank(1, 0.01, 1e-9) == 2


def test_the_percentiles_interval_holds_the_truth():
    rng = np.random.default_rng(2)
    outside = 0
    for _ in range(400):
        figure = intervals.of_percentile("x", rng.random(1000), 0.01)
        outside += not figure.low <= 0.01 <= figure.high
    assert outside <= 30


def test_few_values_leave_the_low_end_of_a_percentile_open():
    figure = intervals.of_percentile("x", np.linspace(0, 1, 100), 0.01)
    assert figure.lower99 is None
    assert figure.upper99 == pytest.approx(np.linspace(0, 1, 100)[4])


def test_accuracies_that_do_not_change_still_have_an_interval():
    right = np.arange(200) % 4 > 0
    figure = intervals.of_accuracies("x", right, right)
    assert (figure.value, figure.reference, figure.candidate) == (0, 75, 75)
    assert figure.low == pytest.approx(-figure.high)
    assert 0.9 < figure.high < 1.1


def test_accuracies_are_paired():
    before = np.arange(1000) % 2 == 0
    fell = before.copy()
    fell[:40:2] = False
    figure = intervals.of_accuracies("x", before, fell)
    assert figure.value == pytest.approx(-2.0)
    assert -3.0 < figure.low < figure.value < figure.high < -1.0


def test_json_has_no_infinity():
    assert intervals.Figure("sqnr_db", math.inf, 3).to_json()["value"] is None
