"""A small encoder whose int8 weights use their whole range, so that kernels which add products in 16 bits saturate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deploykit import registry
from deploykit.precisions import Task
from deploykit.runtime.manifest import Card, Embedding, TensorSpec

WIDTH, INNER, WORDS, LAYERS = 96, 224, 300, 2
CARD = Card(
    "saturating",
    "tensor",
    tuple(TensorSpec(name, "int64", ("batch", "length")) for name in ("input_ids", "attention_mask")),
    (TensorSpec("sentence_embedding", "float32", ("batch", WIDTH)),),
    Embedding("sentence_embedding", WIDTH, "mean", False),
    {"kind": "none"},
)


def save(path: Path) -> Path:
    """Token embeddings, feed-forward blocks with residuals and norms, a masked sum; initialised as torch's Linear is:
    uniformly, so that many weights are near the largest one.
    """
    rng = np.random.default_rng(0)

    def uniform(rows, columns, bound):
        return rng.uniform(-bound, bound, (rows, columns)).astype(np.float32)

    constants = {
        "words.weight": rng.standard_normal((WORDS, WIDTH)).astype(np.float32),
        "norm.scale": np.ones(WIDTH, np.float32),
        "norm.bias": np.zeros(WIDTH, np.float32),
        "last": np.array([-1], np.int64),
        "length_axis": np.array([1], np.int64),
    }
    nodes = [helper.make_node("Gather", ["words.weight", "input_ids"], ["x0"], "lookup")]
    for i in range(LAYERS):
        constants[f"layer.{i}.up.weight"] = uniform(WIDTH, INNER, 0.2)
        constants[f"layer.{i}.up.bias"] = uniform(1, INNER, 0.1)[0]
        constants[f"layer.{i}.down.weight"] = uniform(INNER, WIDTH, 0.2)
        constants[f"layer.{i}.down.bias"] = uniform(1, WIDTH, 0.1)[0]
        nodes += [
            helper.make_node("MatMul", [f"x{i}", f"layer.{i}.up.weight"], [f"p{i}"], f"up{i}"),
            helper.make_node("Add", [f"p{i}", f"layer.{i}.up.bias"], [f"a{i}"], f"up_bias{i}"),
            helper.make_node("Gelu", [f"a{i}"], [f"g{i}"], f"gelu{i}"),
            helper.make_node("MatMul", [f"g{i}", f"layer.{i}.down.weight"], [f"q{i}"], f"down{i}"),
            helper.make_node("Add", [f"q{i}", f"layer.{i}.down.bias"], [f"b{i}"], f"down_bias{i}"),
            helper.make_node("Add", [f"b{i}", f"x{i}"], [f"r{i}"], f"residual{i}"),
            helper.make_node("LayerNormalization", [f"r{i}", "norm.scale", "norm.bias"], [f"x{i + 1}"], f"norm{i}"),
        ]
    nodes += [
        helper.make_node("Cast", ["attention_mask"], ["mask"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["columns"], "columns"),
        helper.make_node("Mul", [f"x{LAYERS}", "columns"], ["masked"], "masked"),
        helper.make_node("ReduceSum", ["masked", "length_axis"], ["sentence_embedding"], "sum", keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info(s.name, TensorProto.INT64, list(s.shape)) for s in CARD.inputs],
        [helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["batch", WIDTH])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def texts(count, seed):
    """Token ids and masks, [4, length] at a time."""
    rng = np.random.default_rng(seed)
    batches = []
    for _ in range(count):
        length = int(rng.integers(5, 20))
        mask = (np.arange(length) < rng.integers(3, length + 1, (4, 1))).astype(np.int64)
        batches.append({"input_ids": rng.integers(0, WORDS, (4, length)) * mask, "attention_mask": mask})
    return batches


def lowered(precision, cpu, portable, folder):
    """The model in ``precision`` for ``cpu``, compiled for onnxruntime: its path, and the facts of the lowering."""
    lowering, target = registry.module("precisions", precision), registry.module("targets", "onnxruntime")
    calibration = texts(24, seed=1) if lowering.CALIBRATED else ()
    task = Task(portable, CARD, lowering.FORMS.get("onnxruntime", ""), calibration)
    facts = lowering.lower(task, lowering.Options(cpu=cpu), folder)
    out = folder / "compiled"
    out.mkdir()
    compiled = target.compile(folder / "model.onnx", CARD, precision, target.Options(), out)
    return out / compiled.path, facts
