"""Embedding tables in int8: a scale per row, and only tables that are looked up and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
ir = pytest.importorskip("onnx_ir")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from deploykit.quantize import embeddings  # noqa: E402


def lookup(table, *, also_multiplied=False):
    nodes = [helper.make_node("Gather", ["table", "ids"], ["y"], name="lookup")]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", table.shape[1]])]
    if also_multiplied:
        nodes.append(helper.make_node("Transpose", ["table"], ["z"]))
        outputs.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, list(table.shape[::-1])))
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])
    graph = helper.make_graph(nodes, "lookup", [ids], outputs, [numpy_helper.from_array(table, "table")])
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9))


def test_rows_of_very_different_size_keep_their_digits():
    table = np.random.default_rng(0).normal(size=(300, 8)).astype("f4") * np.geomspace(1e-3, 1e3, 300)[:, None]
    table = table.astype("f4")
    model = lookup(table)
    assert embeddings.store(model) == ["table"]
    proto = ir.to_proto(model)
    ids = np.arange(300)
    got = ort.InferenceSession(proto.SerializeToString()).run(["y"], {"ids": ids})[0]
    error = np.abs(got - table).max(axis=1) / np.abs(table).max(axis=1)
    assert error.max() <= 0.5 / 127 + 1e-6
    assert {t.data_type for t in proto.graph.initializer if t.name == "table_int8"} == {TensorProto.INT8}


def test_a_table_that_is_used_otherwise_or_is_small_stays_as_it_is():
    table = np.ones((300, 8), "f4")
    assert embeddings.store(lookup(table, also_multiplied=True)) == []
    assert embeddings.store(lookup(table[:20])) == []
