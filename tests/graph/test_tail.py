import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploykit.graph.tail import end_tail

WIDTH = 6


def model(*tail, norm="LayerNormalization", outputs=("y",)):
    """tokens → product → norm → ``tail``, whose last node writes y."""
    draw = np.random.default_rng(0)
    weights = {
        "w": draw.normal(size=(WIDTH, WIDTH)),
        "scale": draw.normal(size=WIDTH),
        "bias": draw.normal(size=WIDTH),
        "head": draw.normal(size=(WIDTH, 3)),
        "axes": np.array([1]),
    }
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"])]
    normed = ["m", "scale", "bias"] if norm == "LayerNormalization" else ["m"]
    nodes += [helper.make_node(norm, normed, ["n"]), *tail]
    initializers = [
        numpy_helper.from_array(v.astype(np.int64 if k == "axes" else np.float32), k) for k, v in weights.items()
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length", WIDTH])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        initializers,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(proto)


def pool(source="n", to="y"):
    return helper.make_node("ReduceSum", [source, "axes"], [to], keepdims=0)


def run(proto):
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    x = np.random.default_rng(1).normal(size=(2, 5, WIDTH)).astype(np.float32)
    return session.run(["y"], {"x": x})[0]


def ended(proto):
    graph_model = ir.from_proto(proto)
    return end_tail(graph_model), ir.to_proto(graph_model)


def test_the_product_stands_before_the_pooling_and_changes_no_value():
    before = model(pool())
    done, after = ended(before)
    assert done
    assert [node.op_type for node in after.graph.node] == ["MatMul", "LayerNormalization", "MatMul", "ReduceSum"]
    np.testing.assert_allclose(run(after), run(before), rtol=1e-6, atol=1e-6)


def test_every_reader_of_the_tokens_goes_through_the_product():
    done, after = ended(model(pool(to="a"), pool(to="b"), helper.make_node("Add", ["a", "b"], ["y"])))
    assert done
    assert sum("n" in node.input for node in after.graph.node) == 1


@pytest.mark.parametrize(
    "proto",
    [
        model(pool(to="p"), helper.make_node("MatMul", ["p", "head"], ["y"])),
        model(pool(), norm="Relu"),
        model(pool(), outputs=("y", "n")),
        model(pool(), helper.make_node("Cast", ["x"], ["frames"], to=TensorProto.INT64)),
    ],
    ids=["a weight follows", "no normalisation", "the tokens are an output", "an index is computed as a float"],
)
def test_a_graph_without_a_tail_to_end_stays_as_it_is(proto):
    done, after = ended(proto)
    assert not done
    assert [n.op_type for n in after.graph.node] == [n.op_type for n in proto.graph.node]
