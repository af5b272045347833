"""DFT nodes become matrix products that give numpy's transforms, at every length."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
ir = pytest.importorskip("onnx_ir")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from deploykit.graph.fourier import transforms_to_products  # noqa: E402


def model(axis, width, length=None, **attributes):
    """DFT of x [batch, length, 6, width] along one axis."""
    constants = [numpy_helper.from_array(np.array(axis, np.int64), "axis")]
    if length is not None:
        constants.append(numpy_helper.from_array(np.array(length, np.int64), "points"))
    inputs = ["x", "points" if length is not None else "", "axis"]
    node = helper.make_node("DFT", inputs, ["y"], **attributes)
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length", 6, width])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", "b", "c", 2])
    graph = helper.make_graph([node], "main", [value], [result], constants)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9))


def run(given, x):
    proto = ir.to_proto(given)
    onnx.checker.check_model(proto)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("axis", [1, 2, -2])
@pytest.mark.parametrize(
    ("width", "attributes"),
    [(1, {}), (2, {}), (2, {"inverse": 1}), (1, {"onesided": 1})],
    ids=["real", "complex", "inverse", "half"],
)
def test_the_products_give_the_transform(axis, width, attributes):
    given = model(axis, width, **attributes)
    assert transforms_to_products(given.graph) == 1
    assert "DFT" not in [node.op_type for node in given.graph]
    random = np.random.default_rng(0)
    for length in (1, 2, 7, 33):
        x = random.standard_normal((3, length, 6, width)).astype(np.float32)
        signal = x[..., 0] + (1j * x[..., 1] if width == 2 else 0)
        if "onesided" in attributes:
            want = np.fft.rfft(x[..., 0], axis=2 if axis == -2 else axis)
        else:
            want = (np.fft.ifft if "inverse" in attributes else np.fft.fft)(signal, axis=2 if axis == -2 else axis)
        got = run(given, x)
        np.testing.assert_allclose(got[..., 0] + 1j * got[..., 1], want, atol=2e-4)


def test_a_transform_that_pads_stays():
    assert transforms_to_products(model(2, 1, length=16).graph) == 0
