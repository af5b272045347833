import math
import random

import pytest

from deploykit.measure.stats import interval_rank, median


def test_median_of_odd_and_even_counts():
    assert median([3.0, 1.0, 2.0]).value == 2.0
    assert median([4.0, 1.0, 2.0, 3.0]).value == 2.5


def test_no_values_are_refused():
    with pytest.raises(ValueError, match="no values"):
        median([])


def test_too_few_values_have_no_interval():
    assert median([1.0, 2.0, 3.0, 4.0, 5.0]).high == math.inf


@pytest.mark.parametrize(("n", "rank"), [(20, 6), (30, 10), (45, 16), (60, 22)])
def test_ranks_of_the_two_sided_95_percent_interval(n, rank):
    assert interval_rank(n, 0.025) == rank


@pytest.mark.parametrize(("n", "rank"), [(20, 4), (30, 8), (45, 14), (60, 20)])
def test_ranks_of_the_one_sided_99_5_percent_bound(n, rank):
    assert interval_rank(n, 0.005) == rank


def test_the_interval_covers_the_true_median_as_often_as_it_says():
    draw = random.Random(7)
    trials = [median([draw.expovariate(1.0) for _ in range(25)]) for _ in range(2000)]
    covered = sum(m.low <= math.log(2) <= m.high for m in trials) / len(trials)
    assert 0.94 <= covered <= 0.985
