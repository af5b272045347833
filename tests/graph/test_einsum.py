"""Einsum nodes become matrix products that give numpy's answers, whatever the order of the labels."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
ir = pytest.importorskip("onnx_ir")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from deploykit.graph.einsum import einsums_to_products, read  # noqa: E402

SIZES = {"b": 3, "i": 5, "j": 4, "t": 7, "n": 2, "h": 6, "d": 8}


def model(equation, weight=None):
    """An Einsum of two inputs of unknown sizes, or of one and a weight."""
    left, right = equation.split("->")[0].split(",")

    def tensor(name, labels):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [f"{name}{label}" for label in labels])

    node = helper.make_node("Einsum", ["x", "y"], ["z"], equation=equation)
    inputs = [tensor("x", left)] + ([tensor("y", right)] if weight is None else [])
    constants = [] if weight is None else [numpy_helper.from_array(weight, "y")]
    graph = helper.make_graph([node], "main", inputs, [tensor("z", equation.split("->")[1])], constants)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9))


def operands(equation):
    random = np.random.default_rng(0)
    shapes = [[SIZES[label] for label in labels] for labels in equation.split("->")[0].split(",")]
    return [random.standard_normal(shape).astype(np.float32) for shape in shapes]


def run(given, **feeds):
    proto = ir.to_proto(given)
    onnx.checker.check_model(proto)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


@pytest.mark.parametrize(
    "equation",
    ["binh,tnh->bnit", "bnih,bnjh->bnij", "ih,hd->id", "bih,hnd->bind", "bh,bih->bi", "h,hd->d"],
)
def test_products_of_two_inputs_give_numpy_s_answer(equation):
    x, y = operands(equation)
    given = model(equation)
    assert einsums_to_products(given.graph) == 1
    assert "Einsum" not in [node.op_type for node in given.graph]
    np.testing.assert_allclose(run(given, x=x, y=y), np.einsum(equation, x, y), atol=1e-4)


@pytest.mark.parametrize("equation", ["ibh,hnd->ibnd", "ibnd,hnd->ibh", "ibh,hnd->bnid", "ih,h->i"])
def test_a_projection_is_one_plain_matrix_product(equation):
    x, y = operands(equation)
    given = model(equation, weight=y)
    assert einsums_to_products(given.graph) == 1
    product = next(node for node in given.graph if node.op_type == "MatMul")
    assert "Unsqueeze" not in [node.op_type for node in given.graph]
    assert product.inputs[1] is not None
    np.testing.assert_allclose(run(given, x=x), np.einsum(equation, x, y), atol=1e-4)


@pytest.mark.parametrize(
    "equation", ["bii,ij->bij", "...ij,jh->...ih", "ij->ji", "ij,jh->ih,", "ijb,jh->ih", "i,j->ij"]
)
def test_an_equation_that_is_no_product_of_two_matrices_stays(equation):
    assert read(equation) is None
