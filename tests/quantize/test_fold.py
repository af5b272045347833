"""Weights dequantized once instead of in every run: the same numbers, and the same facts about them."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploykit.graph import ranges
from deploykit.precisions import Task
from deploykit.precisions.fp16 import measured_ranges
from deploykit.quantize.qdq import float8, fold_weights


def product(kind):
    """x [batch, 8] through a quantizer of its own and a stored weight [8, 6], one scale for each output."""
    draw = np.random.default_rng(0)
    weight = draw.normal(size=(8, 6)).astype(np.float32) * 40
    stored = np.rint(weight).astype(np.int8) if kind == "int8" else weight.astype(float8())
    scales = draw.uniform(0.01, 0.02, 6).astype(np.float32)
    zero = np.zeros((), stored.dtype)
    constants = {"w": stored, "w_scale": scales, "x_scale": np.float32(0.05), "zero": zero}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "x_scale", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale"], ["wd"], axis=1),
        helper.make_node("MatMul", ["d", "wd"], ["y"]),
    ]
    made = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 6])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def run(proto, x):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(proto.SerializeToString(), options).run(None, {"x": x})[0]


X = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)


@pytest.mark.parametrize("kind", ["int8", "float8"])
def test_the_numbers_stay_and_only_the_activation_is_left_to_dequantize(kind):
    proto = product(kind)
    model = ir.from_proto(proto)
    folded = fold_weights(model)
    assert set(folded) == {"wd"}
    assert [node.op_type for node in model.graph] == ["QuantizeLinear", "DequantizeLinear", "MatMul"]
    assert set(model.graph.initializers) == {"x_scale", "zero", "wd"}
    np.testing.assert_allclose(run(ir.to_proto(model), X), run(proto, X), rtol=1e-6)


@pytest.mark.parametrize("kind", ["int8", "float8"])
def test_ranges_are_those_of_the_graph_as_it_stands(kind):
    model = ir.from_proto(product(kind))
    as_it_is = ranges.measure(model, [{"x": X}], "five rows")
    found = measured_ranges(model, Task(None, None, calibration=[{"x": X}]))
    assert [node.op_type for node in model.graph].count("DequantizeLinear") == 2  # it is left alone
    assert found.source == "5 calibration inputs"
    assert set(as_it_is.largest) <= set(found.largest)
    for name, value in as_it_is.largest.items():
        assert found.largest[name] == pytest.approx(value, rel=0.05)  # but for the rounding of the activation
    assert found.largest["x"] == found.largest["d"] == np.abs(X).max()
