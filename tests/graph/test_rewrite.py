"""Cleaning and fusing must keep what is computed, find attention in every form, and leave the rest alone."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
ir = pytest.importorskip("onnx_ir")

from deploykit.graph.attention import attention_sites  # noqa: E402
from deploykit.graph.multi_head import fuse_multi_head_attention  # noqa: E402
from deploykit.graph.plain_attention import MASKED  # noqa: E402
from deploykit.graph.rewrite import clean  # noqa: E402
from tests.graph.attention_graphs import HEADS, SHAPES, SIZE, Form, build, feeds  # noqa: E402

FORMS = {
    "plain": Form(masked=MASKED),
    "scale on keys": Form(scale="key"),
    "scale on both": Form(scale="both", guard=True),
    "scale on scores": Form(scale="scores"),
    "scores divided": Form(scale="divide", masked=float(np.finfo(np.float32).min)),
    "no scale": Form(scale="none"),
    "guarded": Form(guard=True),
    "guarded per query": Form(guard=True, mask="per query"),
    "guarded relative": Form(guard=True, mask="relative"),
    "relative": Form(mask="relative"),
    "filled": Form(fill=True),
    "filled per query": Form(fill=True, mask="per query", scale="divide"),
    "swapped by reshapes": Form(swap=True, guard=True, scale="both"),
    "no mask": Form(mask="none", guard=True),
    "constant shapes": Form(mask="none", constant_shapes=True),
}


def run(model, form, batch, length):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds(form, batch, length))[0]


def fused(model):
    graph_model = ir.from_proto(model)
    return fuse_multi_head_attention(graph_model), ir.to_proto(graph_model)


def operators(model):
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_found_fused_and_equal(name):
    form = FORMS[name]
    model = build(form)
    cleaned = clean(model)
    onnx.checker.check_model(cleaned, full_check=True)
    assert len(attention_sites(ir.from_proto(cleaned).graph)) == 1
    count, whole = fused(cleaned)
    assert count == 1
    assert "Softmax" not in operators(whole)
    for batch, length in SHAPES:
        wanted = run(model, form, batch, length)
        np.testing.assert_allclose(run(cleaned, form, batch, length), wanted, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(run(whole, form, batch, length), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FORMS)
def test_cleaning_twice_changes_nothing_more(name):
    once = clean(build(FORMS[name]))
    assert operators(clean(once)) == operators(once)


@pytest.mark.parametrize("name", FORMS)
def test_cleaning_leaves_no_guard_no_infinity_and_standard_operators(name):
    cleaned = clean(build(FORMS[name]))
    assert not {"IsNaN", "Shape", "Concat"} & set(operators(cleaned))
    assert {node.domain for node in cleaned.graph.node} == {""}
    numbers = [onnx.numpy_helper.to_array(tensor) for tensor in cleaned.graph.initializer]
    assert all(np.abs(array).max() <= -MASKED for array in numbers if array.dtype == np.float32)


def test_inputs_and_outputs_keep_their_names_and_axes():
    model = build(FORMS["guarded"])
    cleaned = clean(model)
    assert [onnx.helper.printable_value_info(v) for v in cleaned.graph.input] == [
        onnx.helper.printable_value_info(v) for v in model.graph.input
    ]
    assert [v.name for v in cleaned.graph.output] == ["y"]


@pytest.mark.parametrize("form", [Form(weights_are_output=True), Form(guard=True, extra_reader=True)])
def test_weights_that_something_else_reads_are_not_fused(form):
    cleaned = clean(build(form))
    count, whole = fused(cleaned)
    assert count == 0
    assert "Softmax" in operators(whole)
    for batch, length in SHAPES:
        np.testing.assert_allclose(
            run(cleaned, form, batch, length), run(build(form), form, batch, length), rtol=1e-4, atol=1e-5
        )


def test_a_site_says_what_it_computes():
    site = attention_sites(ir.from_proto(clean(build(FORMS["scale on both"]))).graph)[0]
    assert site.scale == pytest.approx(SIZE**-0.5)
    assert len(site.masks) == 1
    assert site.guard is None
    assert site.query.shape is not None
    assert site.query.shape[1] == HEADS


def test_a_scale_behind_the_mask_is_no_attention_known_here():
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["": 20]>
        g (float[b, 3, l, 5] q, float[b, 3, 5, l] k, float[b, 3, l, 5] v, float[l, l] m) => (float[b, 3, l, 5] y)
        <float two = {2.0}> {
            s = MatMul(q, k)  t = Add(s, m)  u = Mul(t, two)  w = Softmax <axis = -1> (u)  y = MatMul(w, v)
        }"""
    )
    assert attention_sites(ir.from_proto(model).graph) == []


def test_softmax_over_another_axis_is_no_attention():
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["": 20]>
        g (float[b, 3, l, 5] q, float[b, 3, 5, l] k, float[b, 3, l, 5] v) => (float[b, 3, l, 5] y) {
            s = MatMul(q, k)  w = Softmax <axis = 2> (s)  y = MatMul(w, v)
        }"""
    )
    assert attention_sites(ir.from_proto(model).graph) == []


def test_attention_of_an_unknown_layout_is_found_and_left_as_it_is():
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["": 20]>
        g (float[b, 3, l, 5] q, float[b, 3, 5, l] k, float[b, 3, l, 5] v) => (float[b, 3, l, 5] y) {
            s = MatMul(q, k)  w = Softmax <axis = -1> (s)  y = MatMul(w, v)
        }"""
    )
    graph = ir.from_proto(model).graph
    assert len(attention_sites(graph)) == 1
    count, same = fused(model)
    assert count == 0
    assert operators(same) == operators(model)


def test_a_graph_without_attention_keeps_its_operators():
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["": 20]>
        g (float[b, 7] x) => (float[b, 3] y)
        <float[7, 3] w = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21}> {
            h = MatMul(x, w)  r = Relu(h)  y = Softmax <axis = -1> (r)
        }"""
    )
    assert operators(clean(model)) == ["MatMul", "Relu", "Softmax"]


def test_a_row_that_is_masked_whole_stays_finite_and_reaches_no_other_row():
    form = FORMS["guarded"]
    model = build(form)
    inputs = feeds(form, 2, 7)
    inputs["mask"][1] = 0
    session = onnxruntime.InferenceSession(fused(clean(model))[1].SerializeToString())
    result = session.run(None, inputs)[0]
    assert np.isfinite(result).all()
    np.testing.assert_allclose(result[0], run(model, form, 2, 7)[0], rtol=1e-4, atol=1e-5)


def test_a_mask_is_made_and_spread_once():
    once = operators(fused(clean(build(FORMS["plain"])))[1])
    assert once.count("Where") == 1
    assert once.count("Expand") == 1


ALWAYS_TRUE = """<ir_version: 9, opset_import: ["": 20]>
g (float[batch, 3, length, 5] q, float[batch, 3, 5, length] k, float[batch, 3, length, 5] v, int64[batch, length] mask)
    => (float[batch, 3, length, 5] y)
<int64 i0 = {0}, int64 i1 = {1}, int64[1] a3 = {3}, int64[2] a12 = {1, 2}, int64[2] a01 = {0, 1}, int64[1] a2 = {2},
 int64[1] last = {-1}, float zero = {0.0}, float low = {-30000.0}> {
    bs = Shape <start = 0, end = 1> (mask)   b = Squeeze(bs)
    ls = Shape <start = 1, end = 2> (mask)   l = Squeeze(ls)
    rows = Range(i0, b, i1)   columns = Range(i0, l, i1)
    r2 = Unsqueeze(rows, a12)  r = Unsqueeze(r2, a3)
    c2 = Unsqueeze(columns, a01)  c = Unsqueeze(c2, a2)  q4 = Unsqueeze(c2, a3)
    always = GreaterOrEqual(q4, i0)
    grid = Max(r, c)  shape = Shape(grid)
    re = Expand(r, shape)  rl = Unsqueeze(re, last)
    ce = Expand(c, shape)  cl = Unsqueeze(ce, last)
    index = Concat <axis = -1> (rl, cl)
    visible = Cast <to = 9> (mask)
    seen = GatherND(visible, index)
    both = And(always, seen)
    bias = Where(both, zero, low)
    s = MatMul(q, k)  t = Add(s, bias)  w = Softmax <axis = -1> (t)  y = MatMul(w, v)
}"""


def test_a_mask_gathered_over_index_grids_becomes_the_mask():
    model = onnx.parser.parse_model(ALWAYS_TRUE)
    cleaned = clean(model)
    assert sorted(set(operators(cleaned))) == ["Add", "Cast", "MatMul", "Softmax", "Unsqueeze", "Where"]
    random = np.random.default_rng(0)
    for batch, length in SHAPES:
        given = {
            "q": random.standard_normal((batch, 3, length, 5)).astype(np.float32),
            "k": random.standard_normal((batch, 3, 5, length)).astype(np.float32),
            "v": random.standard_normal((batch, 3, length, 5)).astype(np.float32),
            "mask": feeds(Form(), batch, length)["mask"],
        }
        results = [onnxruntime.InferenceSession(m.SerializeToString()).run(None, given)[0] for m in (model, cleaned)]
        np.testing.assert_allclose(results[1], results[0], rtol=1e-5, atol=1e-6)
