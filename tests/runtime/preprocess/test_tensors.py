"""Ready tensors: checked, cast, batched."""

import numpy as np
import pytest

from deploykit.runtime.errors import BundleError, InputError
from deploykit.runtime.manifest import Card, Embedding, Limits, TensorSpec
from deploykit.runtime.preprocess import open_preprocessor

IDS = TensorSpec("input_ids", "int64", ("batch", "length"))
MASK = TensorSpec("attention_mask", "int64", ("batch", "length"))
FEATURES = TensorSpec("features", "float32", ("batch", "frames", 4))


def make(*inputs, axes=None, **options):
    embedding = Embedding("embedding", 4, "none", False)
    card = Card("model", "tensor", inputs, (), embedding, {"kind": "none", **options}, Limits(axes or {}))
    return open_preprocessor(card, None)


def tokens(length):
    return {"input_ids": np.arange(length), "attention_mask": np.ones(length, np.int64)}


def test_one_array_per_input_where_the_graph_has_one():
    preprocessor = make(FEATURES)
    items = preprocessor.items(np.ones((3, 5, 4)))
    feeds = preprocessor.collate(items)
    assert feeds["features"].shape == (3, 5, 4)
    assert feeds["features"].dtype == np.float32
    assert items[0].cost == 20


def test_a_dict_of_batched_arrays_is_a_batch():
    items = make(IDS, MASK).items({"input_ids": np.arange(6).reshape(2, 3), "attention_mask": np.ones((2, 3), int)})
    assert [item.tensors["input_ids"].tolist() for item in items] == [[0, 1, 2], [3, 4, 5]]


def test_lengths_are_padded_with_zeros_where_a_mask_marks_them():
    preprocessor = make(IDS, MASK)
    feeds = preprocessor.collate(preprocessor.items([tokens(2), tokens(4)]))
    assert feeds["input_ids"].tolist() == [[0, 1, 0, 0], [0, 1, 2, 3]]
    assert feeds["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]


def test_lengths_are_never_padded_without_a_mask():
    preprocessor = make(FEATURES)
    items = preprocessor.items([np.ones((2, 4)), np.ones((3, 4))])
    with pytest.raises(InputError, match=r"sizes \[2, 3\] of axis 'frames'"):
        preprocessor.collate(items)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.ones((1, 3, 4), np.float32), r"shape \[1, 3, 4\] and one input is \['frames', 4\]"),
        (np.ones((3, 5), np.float32), "shape"),
        (np.ones((0, 4), np.float32), "empty"),
        (np.ones((3, 4), complex), "complex128"),
        ([[1.0], [1.0, 2.0]], "no array"),
        ({"feature": np.ones((3, 4))}, "unknown tensor 'feature'"),
        ({}, "lacks the tensor 'features'"),
    ],
)
def test_misfits_are_refused(value, message):
    with pytest.raises(InputError, match=message):
        make(FEATURES).items([value])


def test_floats_are_no_token_ids():
    with pytest.raises(InputError, match="float64 and the graph takes int64"):
        make(IDS).items([np.ones(3)])


def test_axes_of_one_name_agree_and_stay_in_bounds():
    with pytest.raises(InputError, match="length 3 in 'input_ids' and 2 in 'attention_mask'"):
        make(IDS, MASK).items([{"input_ids": np.arange(3), "attention_mask": np.ones(2, int)}])
    with pytest.raises(InputError, match="1 to 8 is proven"):
        make(IDS, axes={"length": (1, 8)}).items([np.arange(9)])


def test_one_array_for_many_inputs_is_refused():
    with pytest.raises(InputError, match="input_ids, attention_mask"):
        make(IDS, MASK).items([np.arange(3)])


def test_a_dict_of_unequal_rows_is_refused():
    with pytest.raises(InputError, match="rows"):
        make(IDS, MASK).items({"input_ids": np.ones((2, 3), int), "attention_mask": np.ones((3, 3), int)})


def test_options_and_prompts_are_refused():
    with pytest.raises(BundleError, match="'size'"):
        make(IDS, size=3)
    with pytest.raises(InputError, match="no prompts"):
        make(IDS).items([], kind="query")
