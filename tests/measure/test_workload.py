import json
from pathlib import Path

import numpy as np
import pytest

from deploykit.data import Dataset
from deploykit.errors import DeploykitError, InputError
from deploykit.measure import workload
from deploykit.measure.workload import Point
from deploykit.runtime.manifest import Card, Embedding, Limits, TensorSpec
from deploykit.runtime.preprocess import Item
from tests.runtime import made


class Words:
    """Two special tokens, and per word one token for every three letters."""

    def items(self, inputs, *, kind=None):
        return [Item({}, min(96, 2 + sum(-(-len(word) // 3) for word in text.split()))) for text in inputs]


def tokens(text):
    return Words().items([text])[0].cost


TEXTS = ("one seven", "extraordinarily long words", "a", "and so on and on")


def card_of(modality, axes=None):
    shape = ("batch", 3)
    return Card(
        "tiny",
        modality,
        (TensorSpec("x", "float32", shape),),
        (TensorSpec("y", "float32", ("batch", 2)),),
        Embedding("y", 2, "mean", False),
        {"kind": "none"},
        Limits(axes or {}),
    )


def test_the_grid_is_every_combination_once():
    points = workload.grid(made.card(), (1, 8, 1), ("16", "real"), (1, 2))
    assert len(points) == len(set(points)) == 8
    assert [p.name for p in points[:3]] == ["b1-l16-c1", "b8-l16-c1", "b1-lreal-c1"]


def test_defaults_stay_inside_what_was_proven():
    assert {p.length for p in workload.grid(made.card(), (1,), None, (1,))} == {16}
    assert [p.length for p in workload.grid(card_of("image"), (1,), None, (1,))] == [None]


@pytest.mark.parametrize(
    ("batches", "lengths", "concurrency", "says"),
    [
        ((0,), None, (1,), "batch is 0"),
        ((1,), None, (0,), "concurrency is 0"),
        ((1,), ("97",), (1,), "length is 97, and 1 to 96 tokens were proven"),
        ((1,), ("0",), (1,), "length is 0"),
        ((1,), ("long",), (1,), "length is 'long'"),
        ((), None, (1,), "nothing to measure"),
    ],
)
def test_what_cannot_be_measured_is_said(batches, lengths, concurrency, says):
    with pytest.raises(InputError) as found:
        workload.grid(made.card(), batches, lengths, concurrency)
    assert says in str(found.value)
    assert found.value.hint


def test_lengths_are_for_texts_and_batches_for_what_was_proven():
    with pytest.raises(InputError, match="lengths are tokens"):
        workload.grid(card_of("image"), (1,), ("16",), (1,))
    with pytest.raises(InputError, match="batch is 8"):
        workload.grid(card_of("image", {"batch": (1, 4)}), (8,), None, (1,))


@pytest.mark.parametrize("length", [3, 4, 7, 20, 60, 96])
def test_texts_are_cut_or_joined_to_exactly_so_many_tokens(length):
    found = workload.of_length(TEXTS, [0, 1, 2, 3, 0], length, tokens)
    assert [tokens(text) for text in found] == [length] * 5
    assert found[0] == found[4]
    assert len(set(found)) > 1
    words = {word for text in TEXTS for word in text.split()}
    assert all(word in words for text in found for word in text.split()[:-1])


def test_a_length_below_the_special_tokens_is_an_error_that_says_so():
    with pytest.raises(InputError) as found:
        workload.of_length(TEXTS, [0], 1, tokens)
    assert "an empty text already has 2 tokens" in str(found.value)


def test_a_place_that_jumps_over_the_length_borrows_from_another():
    def jumping(text):
        return 2 + 5 * text.count("z") + sum(word != "z" for word in text.split())

    found = workload.of_length(("z", "b c d e f g h i"), [0, 1], 5, jumping)
    assert [jumping(text) for text in found] == [5, 5]


def test_inputs_are_drawn_from_the_seed_in_several_batches(tmp_path):
    dataset = Dataset("x", "text", [f"text {i}" for i in range(100)])
    one, same, other = (workload.inputs(Point(8, None, 2), dataset, Words(), seed, tmp_path) for seed in (0, 0, 1))
    assert one == same != other
    assert (one["batch"], one["concurrency"], len(one["inputs"])) == (8, 2, 64)
    assert set(one["inputs"]) <= set(dataset.inputs)
    json.dumps(one)


def test_points_of_one_batch_get_the_same_inputs(tmp_path):
    dataset = Dataset("x", "text", [f"text {i}" for i in range(100)])
    one, other = (workload.inputs(Point(8, None, c), dataset, Words(), 0, tmp_path)["inputs"] for c in (1, 4))
    assert one == other


def test_few_inputs_are_used_again(tmp_path):
    job = workload.inputs(Point(32, None, 1), Dataset("x", "text", ["a", "b"]), Words(), 0, tmp_path)
    assert len(job["inputs"]) == 64


def test_images_sounds_and_tensors_travel_as_files(tmp_path):
    point = Point(1, None, 1)
    arrays = Dataset("x", "audio", [np.zeros(5, np.float32), np.ones(7, np.float32)])
    with np.load(workload.inputs(point, arrays, Words(), 0, tmp_path)["inputs"]) as found:
        assert {found[name].shape for name in found} == {(5,), (7,)}
    tensors = Dataset("x", "tensor", [{"x": np.arange(3) + i} for i in range(4)])
    with np.load(workload.inputs(point, tensors, Words(), 0, tmp_path)["inputs"]) as found:
        assert found["x"].shape == (16, 3)
    encoded = workload.inputs(point, Dataset("x", "image", [b"one", b"two"]), Words(), 0, tmp_path)["inputs"]
    assert {Path(path).read_bytes() for path in encoded} == {b"one", b"two"}
    paths = workload.inputs(point, Dataset("x", "image", [Path("a.png")]), Words(), 0, tmp_path)["inputs"]
    assert all(Path(path).is_absolute() for path in paths)


def test_data_must_fit_the_encoder_and_blank_texts_are_left_out(tmp_path):
    (tmp_path / "t.txt").write_text("one\n\n  \ntwo\n")
    assert list(workload.read(str(tmp_path / "t.txt"), made.card()).inputs) == ["one", "two"]
    assert workload.read(None, made.card()).name == "builtin:sentences"
    (tmp_path / "blank.txt").write_text("\n\n")
    for spec, card in (
        (str(tmp_path / "blank.txt"), made.card()),
        ("builtin:tones", made.card()),
        (None, card_of("tensor")),
    ):
        with pytest.raises(DeploykitError):
            workload.read(spec, card)
