import threading

import pytest

from deploykit.runtime.lanes import Lanes


@pytest.fixture
def lanes():
    made = Lanes(["a", "b"])
    yield made
    made.close()


def test_results_keep_the_order(lanes):
    assert lanes.map(lambda resource, item: item * 2, range(50)) == [2 * i for i in range(50)]


def test_each_resource_is_held_by_one_call_at_a_time(lanes):
    held, clashes = set(), []

    def work(resource, item):
        if resource in held:
            clashes.append(item)
        held.add(resource)
        threading.Event().wait(0.001)
        held.discard(resource)

    lanes.map(work, range(30))
    assert not clashes


def test_lanes_run_at_the_same_time(lanes):
    both = threading.Barrier(2, timeout=10)
    assert lanes.map(lambda resource, item: both.wait() >= 0, range(2)) == [True, True]


def test_items_are_made_only_a_few_ahead(lanes):
    done, ahead = [], []

    def items():
        for i in range(200):
            ahead.append(i - len(done))
            yield i

    lanes.map(lambda resource, item: done.append(item), items())
    # Two lanes, two items each, and the one that waits to be handed over.
    assert max(ahead) <= 4


def test_an_error_of_the_work_is_raised_and_stops_the_feeding(lanes):
    taken = []

    def work(resource, item):
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 0"):
        lanes.map(work, (taken.append(i) or i for i in range(1000)))
    assert len(taken) < 1000
    assert lanes.map(lambda resource, item: item, [1]) == [1]


def test_an_error_of_the_feeding_is_raised(lanes):
    def items():
        yield 1
        raise KeyError("bad input")

    with pytest.raises(KeyError):
        lanes.map(lambda resource, item: item, items())
    assert lanes.map(lambda resource, item: item, [1]) == [1]


def test_several_threads_may_map_at_once(lanes):
    results = {}

    def run(name):
        results[name] = lanes.map(lambda resource, item: (name, item), range(20))

    threads = [threading.Thread(target=run, args=(name,)) for name in "xyz"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == {name: [(name, i) for i in range(20)] for name in "xyz"}
