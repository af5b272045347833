"""Small ONNX graphs that hold one attention, written in the ways in which exporters write it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HEADS, SIZE, WIDTH = 3, 5, 15
SHAPES = ((1, 1), (1, 2), (2, 7), (5, 16))


@dataclass(frozen=True)
class Form:
    """How the attention is written; every field is one thing that exporters do differently."""

    scale: str = "query"  # query, key, both, scores, divide, none
    mask: str = "padding"  # padding, per query, relative, none
    masked: float = -math.inf
    fill: bool = False  # Where on the scores instead of an additive mask
    guard: bool = False  # the IsNaN guard behind the softmax
    swap: bool = False  # the last two axes of the keys are swapped by Reshape, Transpose, Reshape
    constant_shapes: bool = False
    weights_are_output: bool = False
    extra_reader: bool = False  # something else reads the weights


def build(form: Form) -> onnx.ModelProto:
    """A model from ``x`` [batch, length, 15] (and a mask) to ``y`` of the same shape."""
    graph = _Graph()
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length", WIDTH])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "length", WIDTH])]
    query, key, value = (graph.heads(name, form) for name in ("query", "key", "value"))
    key = graph.swapped(key) if form.swap else graph.node("Transpose", [key], perm=[0, 1, 3, 2])
    factor = SIZE**-0.5
    if form.scale in ("query", "both"):
        query = graph.node("Mul", [query, graph.number(factor if form.scale == "query" else factor**0.5)])
    if form.scale in ("key", "both"):
        key = graph.node("Mul", [graph.number(factor if form.scale == "key" else factor**0.5), key])
    scores = graph.node("MatMul", [query, key])
    if form.scale in ("scores", "divide"):
        number = graph.number(factor if form.scale == "scores" else 1 / factor)
        scores = graph.node("Mul" if form.scale == "scores" else "Div", [scores, number])
    if form.mask != "none":
        inputs.append(graph.mask_input(form.mask))
        scores = graph.masked(scores, form)
    weights = graph.node("Softmax", [scores], axis=-1)
    if form.weights_are_output:
        outputs.append(helper.make_tensor_value_info(weights, TensorProto.FLOAT, ["batch", HEADS, "length", "length"]))
    if form.guard:
        nan = graph.node("IsNaN", [weights])
        weights = graph.node("Where", [nan, graph.number(0.0), weights])
    product = graph.node("MatMul", [weights, value])
    if form.extra_reader:
        mean = graph.node("ReduceMean", [weights], keepdims=1)
        product = graph.node("Add", [product, mean])
    merged = graph.node("Transpose", [product], perm=[0, 2, 1, 3])
    target = [0, 0, WIDTH] if form.constant_shapes else None
    graph.node("Reshape", [merged, graph.sizes(target or ["batch", "length", WIDTH])], output="y")
    made = helper.make_graph(graph.nodes, "attention", inputs, outputs, graph.constants)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def feeds(form: Form, batch: int, length: int) -> dict[str, np.ndarray]:
    """Inputs with padding in every row but the first; the first key of every row is visible."""
    random = np.random.default_rng(batch * 100 + length)
    made = {"x": random.standard_normal((batch, length, WIDTH)).astype(np.float32)}
    visible = np.ones((batch, length), np.int64)
    for row in range(1, batch):
        visible[row, max(1, length - 2 * row) :] = 0
    if form.mask == "padding":
        made["mask"] = visible
    elif form.mask == "per query":
        made["mask"] = np.tril(np.ones((length, length), np.int64))[None, None] * visible[:, None, None, :]
    elif form.mask == "relative":
        made["mask"] = random.standard_normal((1, HEADS, length, length)).astype(np.float32)
    return made


class _Graph:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(0)

    def node(self, op_type: str, inputs: list[str], output: str = "", **attributes: object) -> str:
        output = output or f"{op_type.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [output], f"node_{output}", **attributes))
        return output

    def constant(self, array: np.ndarray) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def number(self, number: float) -> str:
        return self.constant(np.array(number, np.float32))

    def vector(self, *numbers: int) -> str:
        return self.constant(np.array(numbers, np.int64))

    def sizes(self, sizes: list[int | str]) -> str:
        """A target for Reshape; the names batch and length become Shape and Gather of x."""
        if not any(isinstance(size, str) for size in sizes):
            return self.vector(*[int(size) for size in sizes])
        shape = self.node("Shape", ["x"])
        axes = {"batch": 0, "length": 1}
        parts = []
        for size in sizes:
            if isinstance(size, str):
                parts.append(self.node("Gather", [shape, self.vector(axes[size])]))
            else:
                parts.append(self.vector(size))
        return self.node("Concat", parts, axis=0)

    def heads(self, name: str, form: Form) -> str:
        weight = self.constant(self._random.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 3)
        bias = self.constant(self._random.standard_normal(WIDTH).astype(np.float32))
        projected = self.node("Add", [self.node("MatMul", ["x", weight]), bias], output=name)
        sizes: list[int | str] = [0, 0, HEADS, SIZE] if form.constant_shapes else ["batch", "length", -1, SIZE]
        split = self.node("Reshape", [projected, self.sizes(sizes)])
        return self.node("Transpose", [split], perm=[0, 2, 1, 3])

    def swapped(self, key: str) -> str:
        shape = self.node("Shape", [key])
        first, length, size = (self._slice(shape, *bounds) for bounds in ((0, 2), (2, 3), (3, 4)))
        flat = self.node("Reshape", [key, self.node("Concat", [self.vector(-1), length, size], axis=0)])
        turned = self.node("Transpose", [flat], perm=[0, 2, 1])
        return self.node("Reshape", [turned, self.node("Concat", [first, size, length], axis=0)])

    def _slice(self, vector: str, start: int, end: int) -> str:
        return self.node("Slice", [vector, self.vector(start), self.vector(end)])

    def mask_input(self, kind: str) -> onnx.ValueInfoProto:
        shapes = {
            "padding": ["batch", "length"],
            "per query": ["batch", 1, "length", "length"],
            "relative": [1, HEADS, "length", "length"],
        }
        dtype = TensorProto.FLOAT if kind == "relative" else TensorProto.INT64
        return helper.make_tensor_value_info("mask", dtype, shapes[kind])

    def masked(self, scores: str, form: Form) -> str:
        if form.mask == "relative":
            return self.node("Add", ["mask", scores])
        visible = self.node("Cast", ["mask"], to=TensorProto.BOOL)
        if form.mask == "padding":
            visible = self.node("Unsqueeze", [visible, self.vector(1, 2)])
        if form.fill:
            return self.node("Where", [visible, scores, self.number(form.masked)])
        mask = self.node("Where", [visible, self.number(0.0), self.number(form.masked)])
        return self.node("Add", [scores, mask])
