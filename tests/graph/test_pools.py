"""Pools that cover all of their input become global ones, and no others do."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
ir = pytest.importorskip("onnx_ir")

from onnx import TensorProto, helper  # noqa: E402

from deploykit.graph.pools import whole_pools_to_global  # noqa: E402


def model(operator, size=(3, 5), **attributes):
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4, *size])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4, "height", "width"])
    node = helper.make_node(operator, ["x"], ["y"], **attributes)
    graph = helper.make_graph([node], "main", [given], [out])
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9))


@pytest.mark.parametrize(("operator", "reduce"), [("AveragePool", np.mean), ("MaxPool", np.max)])
@pytest.mark.parametrize("window", [(3, 5), (640, 640)])
def test_a_window_as_large_as_the_input_is_a_global_pool(operator, reduce, window):
    given = model(operator, kernel_shape=window, strides=window, ceil_mode=1, pads=(0, 0, 0, 0), auto_pad="NOTSET")
    assert whole_pools_to_global(given.graph) == 1
    x = np.random.default_rng(0).standard_normal((2, 4, 3, 5)).astype(np.float32)
    proto = ir.to_proto(given)
    onnx.checker.check_model(proto)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": x})[0], reduce(x, axis=(2, 3), keepdims=True), atol=1e-6)


@pytest.mark.parametrize(
    ("size", "attributes"),
    [
        ((3, 5), {"kernel_shape": (3, 4)}),
        ((3, 5), {"kernel_shape": (5, 7), "pads": (1, 1, 1, 1)}),
        ((3, 5), {"kernel_shape": (5, 5), "auto_pad": "SAME_UPPER"}),
        (("height", 5), {"kernel_shape": (9, 9)}),
    ],
    ids=["smaller", "padded", "padded by itself", "of unknown size"],
)
def test_any_other_pool_stays(size, attributes):
    given = model("AveragePool", size, **attributes)
    assert whole_pools_to_global(given.graph) == 0
    assert [node.op_type for node in given.graph] == ["AveragePool"]
