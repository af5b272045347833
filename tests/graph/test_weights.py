"""Sizes of constants without serialising them, and weights that stand beside the graph."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from deploykit.graph import weights  # noqa: E402
from deploykit.graph.export import save  # noqa: E402


def model():
    """Two products, one with an initializer and one with a constant in a node."""
    make = onnx.helper
    one = onnx.numpy_helper.from_array(np.ones((40, 30), np.float32), "one")
    two = onnx.numpy_helper.from_array(np.ones((30, 5), np.float16), "two")
    nodes = [
        make.make_node("Constant", [], ["two"], value=two),
        make.make_node("MatMul", ["x", "one"], ["y"]),
        make.make_node("Cast", ["two"], ["wide"], to=onnx.TensorProto.FLOAT),
        make.make_node("MatMul", ["y", "wide"], ["z"]),
    ]
    ends = [make.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["batch", s]) for n, s in (("x", 40), ("z", 5))]
    graph = make.make_graph(nodes, "g", ends[:1], ends[1:], [one])
    return make.make_model(graph, opset_imports=[make.make_opsetid("", 20)], ir_version=10)


def test_initializers_and_constants_in_nodes_count():
    assert weights.constant_bytes(model()) == 40 * 30 * 4 + 30 * 5 * 2


def test_weights_that_are_too_many_for_one_file_stand_beside_the_graph(tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr("deploykit.graph.export.ONE_FILE", 1000)
    path = tmp_path / "model.onnx"
    save(model(), path)
    assert (tmp_path / "model.onnx.data").stat().st_size >= 4800
    assert path.stat().st_size < 4800
    answer = onnxruntime.InferenceSession(path).run(None, {"x": np.ones((2, 40), np.float32)})[0]
    np.testing.assert_allclose(answer, np.full((2, 5), 1200.0))
    monkeypatch.setattr("deploykit.graph.export.ONE_FILE", 10**6)
    save(model(), path)
    assert not (tmp_path / "model.onnx.data").exists()
