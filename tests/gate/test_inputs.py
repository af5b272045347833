from pathlib import Path

import numpy as np
import pytest

from deploykit.data import Dataset
from deploykit.errors import InputError, UnknownNameError
from deploykit.gate import inputs
from deploykit.measure import worker


class Subject:
    def __init__(self, tensors=False):
        self.tensors = tensors


def read(point, tensors=False):
    """What the measuring process makes of a point."""
    (batch,) = worker._batches(point, Subject(tensors))
    return batch


def test_a_single_text_of_middling_length_and_a_batch_of_all_lengths(tmp_path):
    texts = ["x" * n for n in range(100, 0, -1)]
    single, batch = inputs.points(Dataset("t", "text", texts), tmp_path)
    assert [len(text) for text in single["inputs"]] == [51]
    assert len(batch["inputs"]) == inputs.BATCH
    lengths = [len(text) for text in batch["inputs"]]
    assert lengths == sorted(lengths)
    assert lengths[0] < 10
    assert lengths[-1] > 90


def test_the_same_data_gives_the_same_workloads(tmp_path):
    found = Dataset("t", "text", ["b", "a", "cc", "dd", ""])
    assert inputs.points(found, tmp_path) == inputs.points(found, tmp_path)


def test_one_input_makes_no_batch(tmp_path):
    assert [p["name"] for p in inputs.points(Dataset("t", "text", ["only"]), tmp_path)] == ["single"]


def test_one_workload_can_be_chosen(tmp_path):
    texts = Dataset("t", "text", ["a", "b c", "d e f"])
    for name in inputs.WORKLOADS:
        assert [p["name"] for p in inputs.points(texts, tmp_path, name)] == [name]
    with pytest.raises(InputError, match="makes no batch"):
        inputs.points(Dataset("t", "text", ["only"]), tmp_path, "batch")
    with pytest.raises(UnknownNameError, match="no workload 'bach'") as found:
        inputs.check_workload("bach")
    assert "batch" in found.value.hint


def test_pictures_go_through_a_file(tmp_path):
    images = [np.full((4, 4 + i, 3), i, np.uint8) for i in range(5)]
    single, batch = inputs.points(Dataset("i", "image", images), tmp_path)
    assert [image.shape for image in read(single)] == [(4, 6, 3)]
    assert sorted(image.shape[1] for image in read(batch)) == [4, 5, 6, 7, 8]


def test_files_by_name_and_encoded_bytes_by_a_file_each(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"123")
    (single, _) = inputs.points(Dataset("i", "image", [path, path]), tmp_path)
    assert single["inputs"] == [str(path.resolve())]
    (single, batch) = inputs.points(Dataset("i", "image", [b"1", b"22"]), tmp_path)
    assert [Path(name).read_bytes() for name in batch["inputs"]] == [b"1", b"22"]


def test_tensors_share_a_batch_only_where_their_shapes_are_the_same(tmp_path):
    rows = [{"x": np.zeros((3, width)), "y": np.zeros(2)} for width in (4, 4, 5, 4)]
    single, batch = inputs.points(Dataset("t", "tensor", rows), tmp_path)
    assert read(single, True)["x"].shape == (1, 3, 4)
    assert read(batch, True)["x"].shape == (3, 3, 4)
    assert read(batch, True)["y"].shape == (3, 2)


def test_without_data_the_selftest_and_the_builtin_set_are_taken(bundles):
    found = inputs.dataset(None, str(bundles()))
    assert found.modality == "text"
    assert found.inputs[0] == "w1 w2 w3"
    assert len(found) > 100
    assert "self-test" in found.name


def test_with_data_it_is_the_data(data):
    assert len(inputs.dataset(str(data), None)) == 600


@pytest.mark.parametrize("count", [2, 7, 8, 9, 1000])
def test_a_batch_never_has_an_input_twice(tmp_path, count):
    *_, batch = inputs.points(Dataset("t", "text", ["x" * n for n in range(count)]), tmp_path)
    assert len(set(batch["inputs"])) == len(batch["inputs"]) == min(count, inputs.BATCH)
