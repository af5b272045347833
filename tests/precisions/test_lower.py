"""fp16 must halve the weights that can bear it and name those that cannot; fp32 and bf16 leave the graph alone."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from deploykit import registry  # noqa: E402
from deploykit.precisions import Task  # noqa: E402
from deploykit.runtime.manifest import Card, Embedding, TensorSpec  # noqa: E402

fp16 = registry.module("precisions", "fp16")


def save(folder, weight, name="weight"):
    """``y = (x @ weight) * 2``; x is [batch, rows of the weight]."""
    rows, columns = weight.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", name], ["h"]), helper.make_node("Mul", ["h", "two"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", columns])],
        [numpy_helper.from_array(weight, name), numpy_helper.from_array(np.float32(2.0), "two")],
    )
    path = folder / "portable.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


def task(model):
    spec = TensorSpec("x", "float32", ("batch", 40)), TensorSpec("y", "float32", ("batch", 30))
    card = Card("product", "tensor", spec[:1], spec[1:], Embedding("y", 30, "none", False), {"kind": "none"})
    return Task(model, card)


def lower(folder, weight, **options):
    out = folder / "out"
    out.mkdir()
    facts = fp16.lower(task(save(folder, weight)), fp16.Options(**options), out)
    return facts, out / "model.onnx"


def ordinary(rows=40, columns=30):
    return np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_what_an_engine_reaches_by_a_setting_leaves_the_graph_alone(name, tmp_path):
    precision = registry.module("precisions", name)
    assert precision.lower(task(tmp_path / "model.onnx"), precision.Options(), tmp_path) == {"unchanged": True}
    assert list(tmp_path.iterdir()) == []


def test_weights_are_stored_in_half_the_bytes_and_give_the_same_product(tmp_path):
    weight = ordinary()
    facts, path = lower(tmp_path, weight)
    assert facts == {"stored_fp16": 1, "bytes_before": 4800, "bytes_after": 2400, "kept_fp32": {}}
    onnx.checker.check_model(path, full_check=True)
    x = ordinary(5, 40)
    result = onnxruntime.InferenceSession(path).run(None, {"x": x})[0]
    np.testing.assert_allclose(result, 2 * (x @ weight.astype(np.float16).astype(np.float32)), rtol=1e-5, atol=1e-5)


def test_small_tensors_stay_fp32(tmp_path):
    facts, path = lower(tmp_path, ordinary(4, 5))
    assert facts["stored_fp16"] == 0
    assert {t.data_type for t in onnx.load(path).graph.initializer} == {TensorProto.FLOAT}


@pytest.mark.parametrize(
    ("value", "reason"), [(70000.0, "beyond fp16"), (np.inf, "infinity"), (-1e30, "beyond fp16"), (np.nan, "NaN")]
)
def test_one_value_that_fp16_cannot_hold_keeps_its_tensor_fp32_and_is_named(tmp_path, value, reason):
    weight = ordinary()
    weight[3, 4] = value
    facts, path = lower(tmp_path, weight)
    assert reason in facts["kept_fp32"]["weight"]
    np.testing.assert_array_equal(numpy_helper.to_array(onnx.load(path).graph.initializer[0]), weight)


def test_a_tensor_of_tiny_values_stays_fp32(tmp_path):
    facts, _ = lower(tmp_path, ordinary() * 1e-5)
    assert "subnormal" in facts["kept_fp32"]["weight"]


def test_a_few_tiny_values_and_zeros_do_not_keep_a_tensor_fp32(tmp_path):
    weight = ordinary()
    weight[:2] = 1e-6
    weight[5:] = 0
    facts, _ = lower(tmp_path, weight, max_subnormal=0.5)
    assert facts["stored_fp16"] == 1
