"""The linter and the real parser on the same graphs: seven good, seven bad, and what only the linter refuses."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ml_dtypes = pytest.importorskip("ml_dtypes")
trt = pytest.importorskip("tensorrt_rtx", exc_type=ImportError)

from onnx import helper  # noqa: E402

from deploykit.errors import BundleError  # noqa: E402
from deploykit.quantize import lint  # noqa: E402
from deploykit.runtime.tensorrt.build import build  # noqa: E402
from deploykit.runtime.tensorrt.recipe import Bounds, Recipe  # noqa: E402
from tests.quantize.test_lint import COLUMNS, ROWS, before, graph  # noqa: E402

RECIPE = Recipe("int8", "8.0", ({"x": Bounds((1, ROWS), (4, ROWS), (8, ROWS))},))
FLOAT8 = {
    "x_zero": np.zeros((), ml_dtypes.float8_e4m3fn),
    "w": np.ones((ROWS, COLUMNS), ml_dtypes.float8_e4m3fn),
    "w_zero": np.zeros(COLUMNS, ml_dtypes.float8_e4m3fn),
}


def transposed(made):
    made[2].output[0] = "w_t"
    return [*made[:3], helper.make_node("Transpose", ["w_t"], ["w_d"], "turn", perm=[1, 0]), *made[3:]]


def gemm(made):
    return [*made[:3], helper.make_node("Gemm", ["x_d", "w_d", "bias"], ["y"], "gemm")]


def without_dequantize(made):
    made[3].input[0] = "x_q"
    return [made[0], *made[2:]]


def contrib(made):
    skip = helper.make_node("SkipLayerNormalization", ["h", "bias", "bias"], ["n"], "skip", domain="com.microsoft")
    return [*made[:-1], skip, helper.make_node("Add", ["n", "bias"], ["y"], "add")]


def on_integers(made):
    product = helper.make_node("MatMulInteger", ["x_q", "w"], ["i"], "integers")
    return [made[0], product, helper.make_node("Cast", ["i"], ["h"], "cast", to=1), made[-1]]


def half_product(made):
    """The product in fp16 between two Casts."""
    casts = [helper.make_node("Cast", [n], [f"{n}_h"], f"to_half_{n}", to=10) for n in ("x_d", "w_d")]
    product = helper.make_node("MatMul", ["x_d_h", "w_d_h"], ["h_h"], "product")
    return [*made[:3], *casts, product, helper.make_node("Cast", ["h_h"], ["h"], "to_float", to=1), made[-1]]


def half_and_float(made):
    kept = [node for node in half_product(made) if node.name not in ("to_float", "add")]
    return [*kept, helper.make_node("Add", ["h_h", "bias"], ["y"], "add")]


def int32_bias():
    bias = helper.make_node("DequantizeLinear", ["b", "b_scale"], ["bias"], "bias")
    changes = {"b": np.ones(COLUMNS, np.int32), "b_scale": np.float32(0.1), "bias": None}
    model = graph(changes, before(bias))
    model.graph.node[-1].input.append("bias")
    return model


def along_the_inputs():
    return graph({"w_scale": np.full(ROWS, 0.1, np.float32), "w_zero": None}, axis=0)


GOOD = {
    "symmetric int8": graph,
    "a weight without zero point": lambda: graph({"w_zero": None}),
    "one scale for a weight": lambda: graph({"w_scale": np.float32(0.1), "w_zero": np.int8(0)}),
    "float8": lambda: graph(FLOAT8),
    "a weight behind a Transpose": lambda: graph({"w": np.ones((COLUMNS, ROWS), np.int8)}, transposed, axis=0),
    "a Gemm with a float bias": lambda: graph(nodes=gemm),
    "fp16 between two Casts": lambda: graph(nodes=half_product),
}
BAD = {
    "uint8 with a zero point": lambda: graph({"x_zero": np.uint8(3)}),
    "a zero point": lambda: graph({"x_zero": np.int8(3)}),
    "an int32 bias": int32_bias,
    "no DequantizeLinear": lambda: graph(nodes=without_dequantize),
    "an operator of onnxruntime": lambda: graph(nodes=contrib),
    "an operator on integers": lambda: graph(nodes=on_integers),
    "fp16 and fp32 without a Cast": lambda: graph(nodes=half_and_float),
}
# Taken by TensorRT for RTX 1.7, which then computes something else or in float: the linter is stricter on purpose.
LAXER = {
    "uint8 with the zero point 0": lambda: graph({"x_zero": np.uint8(0)}),
    "scales along the input channels": along_the_inputs,
    "one scale for each channel of an activation": lambda: graph(
        {"x_scale": np.ones(ROWS, np.float32), "x_zero": np.zeros(ROWS, np.int8)}
    ),
    "float8 below its opset": lambda: graph(FLOAT8, opset=18),
}


def refusal(model, folder):
    """The error of parser or builder; empty when an engine was made of the model."""
    onnx.save(model, folder / "model.onnx")
    try:
        build(trt, "tensorrt-rtx", folder / "model.onnx", RECIPE, "8.9")
    except BundleError as error:
        return error.message
    return ""


@pytest.mark.parametrize("name", GOOD)
def test_both_take_it(name, tmp_path):
    assert lint.check(GOOD[name]()) == ()
    assert refusal(GOOD[name](), tmp_path) == ""


@pytest.mark.parametrize("name", BAD)
def test_both_refuse_it(name, tmp_path):
    assert lint.check(BAD[name]())
    said = refusal(BAD[name](), tmp_path)
    assert "parser does not take 'model.onnx'" in said
    assert "it gives no reason" not in said


@pytest.mark.parametrize("name", LAXER)
def test_only_the_linter_refuses_it(name, tmp_path):
    assert lint.check(LAXER[name]())
    assert refusal(LAXER[name](), tmp_path) == ""
