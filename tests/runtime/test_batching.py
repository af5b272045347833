from dataclasses import replace

import pytest

from deploykit.runtime.batching import Budget, cut, shape_of, spread
from deploykit.runtime.manifest import Limits
from tests.runtime import made


def test_every_input_is_in_exactly_one_batch():
    costs = [5, 1, 9, 3, 7, 200, 2, 2]
    batches = cut(costs, [()] * len(costs), Budget(20, 3))
    assert sorted(index for batch in batches for index in batch) == list(range(len(costs)))


def test_a_batch_keeps_to_the_budget_with_its_padding():
    costs = [5, 1, 9, 3, 7, 2, 2]
    for batch in cut(costs, [()] * len(costs), Budget(20, 3)):
        assert len(batch) <= 3
        assert len(batch) * max(costs[i] for i in batch) <= 20


def test_the_largest_come_first():
    assert cut([1, 3, 2], [()] * 3, Budget(1, 9)) == [[1], [2], [0]]


def test_an_input_above_the_budget_goes_alone():
    assert cut([50, 1], [()] * 2, Budget(10, 9)) == [[0], [1]]


def test_inputs_of_different_keys_never_share_a_batch():
    batches = cut([4, 4, 4, 4], ["a", "b", "a", "b"], Budget(100, 9))
    assert sorted(batches) == [[0, 2], [1, 3]]


def test_few_inputs_are_spread_over_the_lanes():
    assert spread([100, 100, 100, 100], Budget(1000, 32), lanes=2) == Budget(200, 2)
    assert spread([100] * 100, Budget(1000, 32), lanes=2) == Budget(1000, 32)
    assert spread([10], Budget(1000, 32), lanes=2) == Budget(1000, 32)


def test_the_callers_bound_replaces_the_default():
    assert shape_of(made.card(), "fp32", 2, batch_size=3).budget == Budget(2**31, 3)
    assert shape_of(made.card(), "fp32", 2, batch_tokens=77).budget == Budget(77, 2**31)
    assert shape_of(made.card(), "fp32", 2, batch_tokens=77, batch_size=3).budget == Budget(77, 3)


def test_fp32_texts_go_in_smaller_batches():
    assert shape_of(made.card(), "fp32", 2).budget.cost < shape_of(made.card(), "bf16", 2).budget.cost


def test_a_proven_batch_size_is_never_passed():
    card = replace(made.card(), limits=Limits({"batch": (1, 4)}))
    assert shape_of(card, "fp32", 2, batch_size=100).budget.rows == 4


@pytest.mark.parametrize(("names", "pads"), [(("input_ids", "attention_mask"), True), (("pixel_values",), False)])
def test_only_an_encoder_with_a_mask_pads(names, pads):
    card = made.card()
    inputs = tuple(replace(card.inputs[0], name=name) for name in names)
    assert shape_of(replace(card, inputs=inputs), "fp32", 2).pads is pads


def test_on_a_gpu_few_inputs_stay_together(tmp_path):
    card = replace(made.card(), limits=Limits({"batch": (1, 64)}))
    shape = shape_of(card, "fp16", 16, gpu=True)
    costs = [128] * 32
    assert cut(costs, [()] * 32, spread(costs, shape.budget, shape.lanes)) == [list(range(32))]
    assert shape_of(card, "fp16", 16).lanes == 16
