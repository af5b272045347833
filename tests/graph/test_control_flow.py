"""Branches whose condition is known are folded; what is left of control flow is refused with its source line."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")
pytest.importorskip("onnxscript")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from deploykit.errors import ExportError  # noqa: E402
from deploykit.graph import control_flow  # noqa: E402
from deploykit.graph.rewrite import clean  # noqa: E402


def branch(name, factor):
    """A graph without inputs that gives x * factor, x being a value from outside."""
    constant = numpy_helper.from_array(np.array(factor, np.float32), f"{name}_factor")
    output = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, ["batch", 3])
    node = helper.make_node("Mul", ["x", f"{name}_factor"], [f"{name}_out"])
    return helper.make_graph([node], name, [], [output], [constant])


def model(condition=None):
    """If(condition) 2x else 3x; without a condition it is computed from the data."""
    nodes, constants, source = [], [], "flag"
    if condition is None:
        nodes.append(helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0))
        nodes.append(helper.make_node("Cast", ["top"], ["flag"], to=TensorProto.BOOL))
    else:
        constants.append(numpy_helper.from_array(np.array(condition), "flag"))
    chosen = helper.make_node("If", [source], ["y"], then_branch=branch("then", 2.0), else_branch=branch("else", 3.0))
    trace = chosen.metadata_props.add()
    trace.key = "pkg.torch.onnx.stack_trace"
    trace.value = 'File "/somewhere/modeling_odd.py", line 41, in forward\n    if x.max():'
    nodes.append(chosen)
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])
    graph = helper.make_graph(nodes, "main", [value], [result], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


@pytest.mark.parametrize(("condition", "factor"), [(True, 2.0), (False, 3.0)])
def test_a_branch_whose_condition_is_a_constant_is_taken(condition, factor):
    onnxruntime = pytest.importorskip("onnxruntime")
    cleaned = clean(model(condition))
    assert "If" not in [node.op_type for node in cleaned.graph.node]
    session = onnxruntime.InferenceSession(cleaned.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], factor * x)


def test_a_branch_on_data_is_refused_with_its_line():
    given = model()
    lines = control_flow.lines(given)
    with pytest.raises(ExportError, match=r"control flow \(If\): If from modeling_odd.py:41 in forward"):
        control_flow.refuse(clean(given), lines)


def test_a_plain_graph_passes():
    control_flow.refuse(clean(model(True)), {})
