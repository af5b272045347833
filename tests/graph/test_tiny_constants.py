"""Cleaning keeps constants that are nearly neutral: below a logarithm or a division they decide."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from deploykit.graph.rewrite import clean  # noqa: E402


@pytest.mark.parametrize(("operator", "constant"), [("Add", 1e-10), ("Sub", -1e-9), ("Mul", 1.000001)])
def test_a_nearly_neutral_constant_is_kept(operator, constant):
    nodes = [helper.make_node(operator, ["x", "c"], ["h"]), helper.make_node("Log", ["h"], ["y"])]
    ports = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3])] for name in ("x", "y")]
    constants = [numpy_helper.from_array(np.array(constant, np.float32), "c")]
    graph = helper.make_graph(nodes, "logarithm", *ports, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    cleaned = clean(model)
    assert [node.op_type for node in cleaned.graph.node] == [operator, "Log"]
    x = np.array([[1e-12, 1e-9, 2.0]], np.float32)
    want, got = (onnxruntime.InferenceSession(m.SerializeToString()).run(None, {"x": x})[0] for m in (model, cleaned))
    np.testing.assert_allclose(got, want)
