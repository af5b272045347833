"""The linter must name each thing that TensorRT refuses or leaves in float, and pass what it multiplies in int8."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")
ml_dtypes = pytest.importorskip("ml_dtypes")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from deploykit.errors import CheckError  # noqa: E402
from deploykit.quantize import lint  # noqa: E402

ROWS, COLUMNS = 5, 7
INT8 = np.int8(0)
CHANNELS = np.linspace(0.1, 0.2, COLUMNS, dtype=np.float32)


def graph(changes=None, nodes=None, opset=20, axis=1):
    """Q → DQ on x, DQ on a weight [5, 7] by column, MatMul, Add; ``changes`` replace or take out (None) constants."""
    constants = {
        "x_scale": np.float32(0.02),
        "x_zero": INT8,
        "w": np.ones((ROWS, COLUMNS), np.int8),
        "w_scale": CHANNELS,
        "w_zero": np.zeros(COLUMNS, np.int8),
        "bias": np.ones(COLUMNS, np.float32),
    } | (changes or {})
    made = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["x_q"], "quantize"),
        helper.make_node("DequantizeLinear", ["x_q", "x_scale", "x_zero"], ["x_d"], "dequantize"),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_d"], "weight", axis=axis),
        helper.make_node("MatMul", ["x_d", "w_d"], ["h"], "product"),
        helper.make_node("Add", ["h", "bias"], ["y"], "add"),
    ]
    proto = helper.make_graph(
        made if nodes is None else nodes(made),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", ROWS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", COLUMNS])],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items() if a is not None],
    )
    for node in proto.node:
        for i, name in enumerate(node.input):
            if constants.get(name, name) is None:
                node.input[i] = ""
        while node.input and not node.input[-1]:
            del node.input[-1]
    return helper.make_model(proto, opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("o", 1)])


def only(model):
    """The single violation of a model."""
    found = lint.check(model)
    assert len(found) == 1, found
    return found[0]


def before(*more):
    return lambda made: [*more, *made]


def test_symmetric_int8_passes():
    assert lint.check(graph()) == ()
    lint.enforce(graph())


def test_float8_passes_and_needs_its_opset():
    float8 = ml_dtypes.float8_e4m3fn
    changes = {
        "x_zero": np.zeros((), float8),
        "w": np.ones((ROWS, COLUMNS), float8),
        "w_zero": np.zeros(COLUMNS, float8),
    }
    assert lint.check(graph(changes)) == ()
    assert {v.rule for v in lint.check(graph(changes, opset=18))} == {"opset"}


def test_a_weight_without_zero_point_passes():
    assert lint.check(graph({"w_zero": None})) == ()


@pytest.mark.parametrize(
    ("rule", "node", "changes", "fact"),
    [
        ("type", "quantize", {"x_zero": np.uint8(0)}, "stores uint8"),
        ("type", "weight", {"w": np.ones((5, 7), np.int16), "w_zero": None}, "stores int16"),
        ("zero point", "quantize", {"x_zero": np.int8(3)}, "zero point is 3"),
        ("zero point", "weight", {"w_zero": np.arange(7, dtype=np.int8)}, "zero point is 6"),
        ("per channel", "quantize", {"x_scale": np.ones(5, np.float32)}, "5 scales for an activation"),
        ("scale", "weight", {"w_scale": CHANNELS - CHANNELS[0]}, "must be positive"),
        ("scale", "quantize", {"x_scale": np.float32(np.nan)}, "NaN or infinity"),
        ("axis", "weight", {"w_scale": CHANNELS[:5], "w_zero": None}, "5 scales for the 7 channels"),
        ("blocks", "weight", {"w_scale": np.ones((1, 7), np.float32), "w_zero": None}, "blocks"),
    ],
)
def test_each_violation_names_its_node_and_fact(rule, node, changes, fact):
    found = [v for v in lint.check(graph(changes)) if v.rule == rule]
    assert found[0].node == node
    assert fact in found[0].fact
    assert found[0].fix
    assert {v.rule for v in lint.check(graph(changes))} == {rule}


def test_scales_along_the_input_channels_are_refused():
    violation = only(graph({"w_scale": CHANNELS[:5], "w_zero": None}, axis=0))
    assert violation.rule == "axis"
    assert "output channels of product along 1" in violation.fact


def test_the_axis_is_followed_through_a_transpose():
    def transposed(made):
        made[2].output[0] = "w_t"
        return [*made[:3], helper.make_node("Transpose", ["w_t"], ["w_d"], "turn", perm=[1, 0]), *made[3:]]

    changes = {"w": np.ones((COLUMNS, ROWS), np.int8)}
    assert lint.check(graph(changes, transposed, axis=0)) == ()
    assert only(graph(changes | {"w_scale": CHANNELS[:5], "w_zero": None}, transposed, axis=1)).rule == "axis"


@pytest.mark.parametrize(
    ("op", "names"), [("Add", ["h", "half"]), ("Where", ["c", "h", "half"]), ("Concat", ["half", "h"])]
)
def test_types_that_nobody_casts_are_refused(op, names):
    def mixed(made):
        half = helper.make_node("Cast", ["x_d"], ["half"], "to_half", to=TensorProto.FLOAT16)
        attributes = {"axis": 1} if op == "Concat" else {}
        return [*made[:4], half, helper.make_node(op, names, ["y"], "mix", **attributes)]

    violation = only(graph({"c": np.array(True)}, mixed))
    assert (violation.rule, violation.node) == ("mixed types", "mix")
    assert {"float", "float16"} == set(violation.fact.split()[-3::2])


def test_types_are_followed_where_the_model_does_not_say_them():
    def cast(made):
        half = helper.make_node("Cast", ["h"], ["half"], "to_half", to=TensorProto.FLOAT16)
        turned = helper.make_node("Relu", ["half"], ["relu"], "relu")
        back = helper.make_node("Cast", ["relu"], ["float"], "to_float", to=TensorProto.FLOAT)
        return [*made[:4], half, turned, back, helper.make_node("Add", ["float", "bias"], ["y"], "add")]

    assert lint.check(graph(nodes=cast)) == ()


def test_a_bias_in_int32_is_refused():
    bias = helper.make_node("DequantizeLinear", ["b", "b_scale"], ["bias"], "bias")
    changes = {"b": np.ones(COLUMNS, np.int32), "b_scale": np.float32(0.1), "bias": None}
    model = graph(changes, before(bias))
    model.graph.node[-1].input.append("bias")
    violation = only(model)
    assert (violation.rule, violation.node) == ("int32", "bias")
    assert "leave the bias float" in violation.fix


def test_the_quantized_bias_of_a_gemm_is_refused():
    def gemm(made):
        bias = helper.make_node("DequantizeLinear", ["b", "x_scale"], ["b_d"], "bias")
        return [*made[:3], bias, helper.make_node("Gemm", ["x_d", "w_d", "b_d"], ["y"], "gemm")]

    violation = only(graph({"b": np.ones(COLUMNS, np.int8)}, gemm))
    assert (violation.rule, violation.node) == ("bias", "gemm")


@pytest.mark.parametrize("op", ["DynamicQuantizeLinear", "MatMulInteger", "QLinearMatMul"])
def test_operators_that_compute_on_integers_are_refused(op):
    violation = only(graph(nodes=before(helper.make_node(op, ["x"], ["other"], "integers"))))
    assert (violation.rule, violation.node) == ("operator form", "integers")
    assert op in violation.fact


def test_operators_of_other_domains_are_refused():
    node = helper.make_node("SkipLayerNormalization", ["x"], ["other"], "skip", domain="com.microsoft")
    violation = only(graph(nodes=before(node)))
    assert violation.rule == "domain"
    assert "com.microsoft" in violation.fact


def test_a_scale_that_is_computed_is_refused():
    node = helper.make_node("ReduceMax", ["x"], ["x_scale"], "computed", keepdims=0)
    model = graph(nodes=before(node))
    constants = [t for t in model.graph.initializer if t.name != "x_scale"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(constants)
    found = lint.check(model)
    assert {v.rule for v in found} == {"scale"}
    assert "not a constant" in found[0].fact


def test_a_quantizer_without_zero_point_is_uint8_and_says_so():
    violation = next(v for v in lint.check(graph({"x_zero": None})) if v.node == "quantize")
    assert "uint8" in violation.fact
    assert "int8 zeros" in violation.fix


def test_what_is_quantized_must_be_dequantized():
    def direct(made):
        made[3].input[0] = "x_q"
        return [made[0], *made[2:]]

    violation = only(graph(nodes=direct))
    assert violation.rule == "no DequantizeLinear"
    assert "MatMul" in violation.fact


def test_enforce_raises_with_the_node_the_fact_and_the_fix():
    with pytest.raises(CheckError) as caught:
        lint.enforce(graph({"x_zero": np.int8(3)}))
    assert "quantize: its zero point is 3" in caught.value.message
    assert "symmetrically" in caught.value.hint
