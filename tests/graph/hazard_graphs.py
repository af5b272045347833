"""Small graphs that fp16 arithmetic breaks, each in its own way."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from deploykit.runtime.manifest import Card, Embedding, TensorSpec

WIDTH = 24


def model(nodes, constants, inputs=(("x", TensorProto.FLOAT, ["batch", WIDTH]),), output=("batch", WIDTH)):
    """A model of these nodes, ``(op_type, inputs, outputs, attributes)``; the last one writes ``embedding``."""
    graph = helper.make_graph(
        [helper.make_node(op, i, o, name="n_" + o[0], **attributes) for op, i, o, attributes in nodes],
        "hazards",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, list(output))],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def card(inputs=(("x", "float32", ("batch", WIDTH)),)):
    specs = tuple(TensorSpec(name, dtype, shape) for name, dtype, shape in inputs)
    output = TensorSpec("embedding", "float32", ("batch", WIDTH))
    return Card("m", "tensor", specs, (output,), Embedding("embedding", WIDTH, "none", False), {"kind": "none"})


def weight(rows=WIDTH, columns=WIDTH, scale=1.0, seed=0):
    return (np.random.default_rng(seed).standard_normal((rows, columns)) * scale).astype(np.float32)


def large_residual():
    """A residual stream of 1e5-size values that a LayerNormalization brings back."""
    constants = {
        "w1": weight(scale=1e4),
        "w2": weight(seed=1),
        "scale": np.ones(WIDTH, np.float32),
        "bias": np.zeros(WIDTH, np.float32),
    }
    nodes = [
        ("MatMul", ["x", "w1"], ["stream"], {}),
        ("LayerNormalization", ["stream", "scale", "bias"], ["normed"], {"axis": -1}),
        ("MatMul", ["normed", "w2"], ["branch"], {}),
        ("Add", ["stream", "branch"], ["sum"], {}),
        ("LayerNormalization", ["sum", "scale", "bias"], ["embedding"], {"axis": -1}),
    ]
    return model(nodes, constants)


def written_out_norm(epsilon=1e-5, scale=200.0):
    """LayerNorm in ReduceMean, Sub, Pow, Sqrt and Div, over values whose squares overflow, between two products."""
    constants = {
        "w1": weight(scale=scale),
        "w2": weight(seed=1),
        "axes": np.array([-1], np.int64),
        "two": np.float32(2.0),
        "epsilon": np.float32(epsilon),
    }
    nodes = [
        ("MatMul", ["x", "w1"], ["h"], {}),
        ("ReduceMean", ["h", "axes"], ["mean"], {}),
        ("Sub", ["h", "mean"], ["centred"], {}),
        ("Pow", ["centred", "two"], ["square"], {}),
        ("ReduceMean", ["square", "axes"], ["variance"], {}),
        ("Add", ["variance", "epsilon"], ["safe"], {}),
        ("Sqrt", ["safe"], ["deviation"], {}),
        ("Div", ["centred", "deviation"], ["normed"], {}),
        ("MatMul", ["normed", "w2"], ["embedding"], {}),
    ]
    return model(nodes, constants)


def masked_softmax(masked=-3.4028235e38):
    """Scores with ``masked`` added where a mask is 0, between two products."""
    constants = {"w1": weight(), "w2": weight(seed=1), "masked": np.float32(masked), "zero": np.float32(0)}
    nodes = [
        ("Cast", ["mask"], ["real"], {"to": TensorProto.BOOL}),
        ("Where", ["real", "zero", "masked"], ["additive"], {}),
        ("MatMul", ["x", "w1"], ["scores"], {}),
        ("Add", ["scores", "additive"], ["hidden"], {}),
        ("Softmax", ["hidden"], ["weights"], {"axis": -1}),
        ("MatMul", ["weights", "w2"], ["embedding"], {}),
    ]
    inputs = (("x", TensorProto.FLOAT, ["batch", WIDTH]), ("mask", TensorProto.INT64, ["batch", WIDTH]))
    return model(nodes, constants, inputs)


def rotary():
    """cos(position * frequency) times x; positions are int64 [batch, WIDTH]."""
    constants = {"frequency": np.float32(0.7)}
    nodes = [
        ("Cast", ["position"], ["real"], {"to": TensorProto.FLOAT}),
        ("Mul", ["real", "frequency"], ["angle"], {}),
        ("Cos", ["angle"], ["cosine"], {}),
        ("Mul", ["x", "cosine"], ["embedding"], {}),
    ]
    inputs = (("x", TensorProto.FLOAT, ["batch", WIDTH]), ("position", TensorProto.INT64, ["batch", WIDTH]))
    return model(nodes, constants, inputs)
