"""Small graphs to quantize, written by hand."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def model_of(nodes, initializers, *, x=("batch", 6), outputs=("y",), opset=20):
    """A model of one float input ``x``."""
    graph = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model)


def feed_forward(middle="Gelu", *, norm_bias=True):
    """LayerNormalization, product, activation, product, with a few channels far larger than the rest."""
    scale = np.ones(6, np.float32)
    scale[2] = 40
    norm = ["x", "norm.weight", "norm.bias"] if norm_bias else ["x", "norm.weight"]
    nodes = [
        helper.make_node("LayerNormalization", norm, ["n"], axis=-1, name="norm"),
        helper.make_node("MatMul", ["n", "first.weight"], ["a"], name="first"),
        helper.make_node("Add", ["a", "first.bias"], ["b"]),
        helper.make_node(middle, ["b"], ["g"], name="middle"),
        helper.make_node("MatMul", ["g", "second.weight"], ["c"], name="second"),
        helper.make_node("Add", ["c", "second.bias"], ["y"]),
    ]
    first = random(6, 8, seed=1)
    first[:, 5] *= 30
    constants = {
        "norm.weight": scale,
        "first.weight": first,
        "first.bias": random(8, seed=2),
        "second.weight": random(8, 4, seed=3),
        "second.bias": random(4, seed=4),
    }
    if norm_bias:
        constants["norm.bias"] = random(6, seed=5)
    return model_of(nodes, constants)


def run(model, x, names=("y",)):
    from deploykit.quantize.observe import running

    with running(model, names) as values:
        return values({"x": x})
