"""Which inputs are calibrated on: few, from everywhere, the same ones every time."""

import numpy as np
import pytest

from deploykit.data import coverage


@pytest.mark.parametrize(("count", "total", "places"), [(3, 9, [0, 4, 8]), (9, 4, [0, 1, 2, 3]), (1, 5, [2])])
def test_evenly(count, total, places):
    assert coverage.evenly(count, total) == places


def test_sizes_are_covered_from_the_shortest_to_the_longest():
    sizes = [5] * 90 + [200] * 10
    chosen = coverage.across_sizes(sizes, 20)
    assert len(chosen) == 20
    assert {sizes[place] for place in chosen} == {5, 200}
    assert sum(sizes[place] == 200 for place in chosen) == 2  # as often as in the data


def test_vectors_of_one_size_are_covered_group_by_group():
    draw = np.random.default_rng(0)
    centres = np.eye(4) * 10
    vectors = np.concatenate([centres[i] + draw.normal(0, 0.1, (n, 4)) for i, n in enumerate((97, 1, 1, 1))])
    chosen = coverage.farthest(vectors, 4)
    assert {97, 98, 99} < set(chosen)


def test_the_choice_is_the_same_every_time_and_says_how_it_was_made():
    vectors = np.random.default_rng(1).normal(size=(40, 3))

    def embed(places):
        return vectors[list(places)]

    first, how = coverage.choose([7] * 40, 5, embed)
    assert how == "farthest apart by their vectors"
    assert coverage.choose([7] * 40, 5, embed)[0] == first
    assert len(set(first)) == 5
    assert coverage.choose([3, 1, 2], 5, embed) == ([0, 1, 2], "all")
    assert coverage.choose(list(range(40)), 4, embed) == ([0, 13, 26, 39], "evenly over the sizes")
