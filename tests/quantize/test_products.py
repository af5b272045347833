"""Products must be found wherever they stand, and carry the same kind in every block and in no other role."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from deploykit.errors import UnknownNameError  # noqa: E402
from deploykit.quantize.products import CONTEXT, SCORES, as_matrix, find, from_matrix, select  # noqa: E402

BERT = {
    "model.encoder.layer.*.attention.self.query",
    "model.encoder.layer.*.attention.self.key",
    "model.encoder.layer.*.attention.self.value",
    "model.encoder.layer.*.attention.output.dense",
    "model.encoder.layer.*.intermediate.dense",
    "model.encoder.layer.*.output.dense",
    SCORES,
    CONTEXT,
}


def load(path):
    return ir.from_proto(onnx.load(path))


def random(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def build(nodes, initializers, inputs=(("x", ["batch", 6]),), outputs=("y",)):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def test_a_bert_has_eight_kinds_and_every_block_has_one_of_each(bert):
    assert Counter(p.kind for p in find(load(bert.path))) == dict.fromkeys(BERT, 2)


def test_without_any_names_a_bert_still_has_eight_kinds(bert):
    model = load(bert.path)
    for i, value in enumerate(list(model.graph.initializers.values())):
        value.name = f"val_{10_000 + i}"
    counted = Counter(p.kind for p in find(model))
    assert len(counted) == 8
    assert set(counted.values()) == {2}


def test_a_vit_has_its_patches_and_eight_kinds(vit):
    counted = Counter(p.kind for p in find(load(vit.path)))
    assert sorted(counted.values()) == [1, 2, 2, 2, 2, 2, 2, 2, 2]
    assert {SCORES, CONTEXT} < set(counted)


def test_the_convolutions_of_a_resnet_are_told_apart(resnet):
    products = find(load(resnet.path))
    assert {p.op for p in products} == {"Conv"}
    assert len({p.kind for p in products}) > len(products) / 2


def test_a_gemm_with_a_transposed_weight_has_its_outputs_first():
    model = build(
        [helper.make_node("Gemm", ["x", "fc.weight", "fc.bias"], ["y"], transB=1)],
        {"fc.weight": random(4, 6), "fc.bias": random(4)},
    )
    (product,) = find(model)
    assert (product.kind, product.axis, product.bias, product.shape) == ("fc", 0, "fc.bias", (4, 6))


def test_a_weight_behind_a_transpose_is_a_weight():
    model = build(
        [helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]), helper.make_node("MatMul", ["x", "wt"], ["y"])],
        {"w": random(4, 6)},
    )
    (product,) = find(model)
    assert (product.weight, product.shape) == ("wt", (6, 4))


def test_without_names_the_structure_names_and_readers_of_one_activation_are_counted():
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("MatMul", ["r", "val_1"], ["a"]),
        helper.make_node("MatMul", ["r", "val_2"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["s"]),
        helper.make_node("MatMul", ["s", "val_3"], ["y"]),
    ]
    model = build(nodes, {"val_1": random(6, 4), "val_2": random(6, 4) + 1, "val_3": random(4, 3)})
    assert [p.kind for p in find(model)] == [
        "MatMul 6x4 after Relu, reader 1 of 2",
        "MatMul 6x4 after Relu, reader 2 of 2",
        "MatMul 4x3 after Add",
    ]


def test_a_bias_shared_by_different_weights_names_none_of_them():
    nodes = [
        helper.make_node("MatMul", ["x", "val_1"], ["a"]),
        helper.make_node("Add", ["a", "one.bias"], ["b"]),
        helper.make_node("MatMul", ["b", "val_2"], ["c"]),
        helper.make_node("Add", ["c", "one.bias"], ["y"]),
    ]
    model = build(nodes, {"val_1": random(6, 4), "val_2": random(4, 4), "one.bias": random(4)})
    assert all("one" not in p.kind for p in find(model))


def test_the_steps_of_a_sequence_keep_their_numbers_and_blocks_lose_them():
    names = [f"blocks.{b}.net.{step}.weight" for b in (0, 1) for step in (0, 2)]
    nodes = [helper.make_node("MatMul", [f"h{i}" if i else "x", name], [f"h{i + 1}"]) for i, name in enumerate(names)]
    model = build(nodes, {name: random(6, 6) + i for i, name in enumerate(names)}, outputs=("h4",))
    assert [p.kind for p in find(model)] == ["blocks.*.net.0", "blocks.*.net.2"] * 2


def test_kinds_are_chosen_exactly_before_they_are_chosen_by_pattern():
    assert select(["model.encoder.layer.*.output.dense"], BERT) == {"model.encoder.layer.*.output.dense"}
    assert len(select(["*.self.*"], BERT)) == 3


def test_an_unknown_kind_gives_the_nearest():
    with pytest.raises(UnknownNameError, match=r"output\.dens'") as caught:
        select(["model.encoder.layer.*.output.dens"], BERT)
    assert "model.encoder.layer.*.output.dense" in caught.value.hint


@pytest.mark.parametrize("shape", [(5, 3, 2, 2), (6, 4)])
def test_a_weight_as_a_matrix_has_its_outputs_first_and_comes_back(shape):
    array = random(*shape)
    op = "Conv" if len(shape) == 4 else "MatMul"
    x = ("x", ["batch", 3, 8, 8]) if op == "Conv" else ("x", ["batch", 6])
    (product,) = find(build([helper.make_node(op, ["x", "w"], ["y"])], {"w": array}, inputs=(x,)))
    matrix = as_matrix(product, array)
    assert matrix.shape == ((5, 12) if op == "Conv" else (4, 6))
    np.testing.assert_array_equal(from_matrix(product, matrix), array)
