"""What an ONNX model of preprocessed tensors is proven with: ranges of integers, sizes of axes, the user's examples."""

from __future__ import annotations

import numpy as np
import pytest

from deploykit.errors import SourceError
from deploykit.sources import Options, open_source

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import numpy_helper

from tests.sources.onnx_files import I32, I64, RNG, F, exported, given, tensor, write


def embedder(path, dtype, dims):
    return write(
        path,
        [
            ("Cast", ["ids"], ["wide"], {"to": I64}),
            ("Gather", ["table", "wide"], ["tokens"], {}),
            ("ReduceMean", ["tokens"], ["y"], {"axes": [1], "keepdims": 0}),
        ],
        [("ids", dtype, dims)],
        [("y", F, [dims[0], 6])],
        [tensor("table", 50, 6)],
    )


@pytest.mark.parametrize("dtype", [I32, I64])
def test_integers_take_the_rows_of_their_table(tmp_path, dtype):
    source = open_source(embedder(tmp_path / "ids.onnx", dtype, ["a", "b"]))
    ids = source.make_inputs(8, {"length": 64}, 0)["ids"]
    assert str(ids.dtype) == ("torch.int32" if dtype == I32 else "torch.int64")
    assert ids.max() > 40
    assert ids.max() < 50


def test_integers_compared_with_each_class_take_all_of_them(tmp_path):
    spec = write(
        tmp_path / "onehot.onnx",
        [
            ("Unsqueeze", ["ids", "last"], ["column"], {}),
            ("Equal", ["column", "classes"], ["hot"], {}),
            ("Cast", ["hot"], ["float"], {"to": F}),
            ("MatMul", ["float", "w"], ["tokens"], {}),
            ("ReduceMean", ["tokens"], ["y"], {"axes": [1], "keepdims": 0}),
        ],
        [("ids", I32, ["batch", 9])],
        [("y", F, ["batch", 3])],
        [
            tensor("w", 30, 3),
            numpy_helper.from_array(np.arange(30, dtype=np.int32)[None, None], "classes"),
            numpy_helper.from_array(np.array([2], np.int64), "last"),
        ],
    )
    ids = open_source(spec).make_inputs(32, {}, 0)["ids"]
    assert (int(ids.min()), int(ids.max())) == (0, 29)


def test_axes_without_names_are_found(tmp_path):
    spec = embedder(tmp_path / "ids.onnx", I64, [None, None])
    ids = RNG.integers(0, 50, (5, 11))
    source, _, got = exported(spec, tmp_path, {"ids": ids})
    assert source.card.inputs[0].shape == ("batch", "length")
    assert source.card.limits.axes["length"][1] >= 2048
    np.testing.assert_allclose(got, given(spec, {"ids": ids}, "y"), atol=1e-5)


def test_a_width_without_a_size_is_what_the_weights_take(tmp_path):
    spec = write(
        tmp_path / "open.onnx",
        [("MatMul", ["x", "w"], ["h"], {}), ("ReduceMean", ["h"], ["y"], {"axes": [1], "keepdims": 0})],
        [("x", F, [None, None, None])],
        [("y", F, [None, 3])],
        [tensor("w", 80, 3)],
    )
    source = open_source(spec)
    assert source.card.inputs[0].shape == ("batch", "length", 80)


@pytest.mark.parametrize(("asked", "limits"), [({"length": "1:3000"}, (1, 3000)), ({"b": "5:9"}, (5, 9))])
def test_sizes_are_asked_for_by_either_name(tmp_path, asked, limits):
    source = open_source(embedder(tmp_path / "ids.onnx", I64, ["a", "b"]), Options(axes=asked))
    assert source.card.limits.axes["length"] == limits


@pytest.mark.parametrize("axes", [{"width": "3"}, {"length": "9:3"}, {"length": "many"}])
def test_wrong_sizes_are_refused(tmp_path, axes):
    with pytest.raises(SourceError, match=next(iter(axes))):
        open_source(embedder(tmp_path / "ids.onnx", I64, ["a", "b"]), Options(axes=axes))


def test_examples_are_what_is_proven(tmp_path):
    np.savez(tmp_path / "real.npz", ids=np.full((4, 10), 7, np.int32))
    spec = embedder(tmp_path / "ids.onnx", I64, ["a", "b"])
    source = open_source(spec, Options(example=str(tmp_path / "real.npz")))
    assert set(source.make_inputs(5, {"length": 23}, 3)["ids"].flatten().tolist()) == {7}


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"id": np.zeros((4, 3), np.int64)}, "no input"),
        ({"ids": np.zeros((4, 3, 2), np.int64)}, "expected"),
        ({"ids": np.zeros((4, 3))}, "float64"),
    ],
)
def test_examples_that_do_not_fit_are_refused(tmp_path, arrays, said):
    np.savez(tmp_path / "real.npz", **arrays)
    with pytest.raises(SourceError, match=said):
        open_source(embedder(tmp_path / "ids.onnx", I64, ["a", "b"]), Options(example=str(tmp_path / "real.npz")))
