"""An encoder of ready tensors with three residual blocks, as a bundle whose variants are good or spoiled on purpose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

from deploykit.bundle.write import Contents, write_bundle, write_selftest
from deploykit.runtime.bundle import Bundle
from deploykit.runtime.manifest import Card, Embedding, Limits, SelfTest, TensorSpec, Variant

WIDTH, DIM, BLOCKS = 12, 7, 3


def model(path: Path, spoiled: int | None = None) -> Path:
    """Write the graph; the weights of block ``spoiled`` are rounded to a few levels."""
    rng = np.random.default_rng(4)
    nodes, weights = [], {}

    def weight(name, *shape):
        weights[name] = (rng.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)
        return name

    nodes.append(helper.make_node("MatMul", ["features", weight("body.embeddings.weight", 5, WIDTH)], ["x0"]))
    nodes.append(helper.make_node("Clip", ["mask"], ["clipped"], name="mask_clip"))
    for i in range(BLOCKS):
        name = f"body.block.{i}.dense.weight"
        nodes.append(helper.make_node("MatMul", [f"x{i}", weight(name, WIDTH, WIDTH)], [f"dense{i}"]))
        if spoiled == i:
            weights[name] = np.round(weights[name] * 2) / 2
        nodes.append(helper.make_node("Relu", [f"dense{i}"], [f"relu{i}"]))
        nodes.append(helper.make_node("Add", [f"relu{i}", f"x{i}"], [f"sum{i}"]))
        norm = f"body.block.{i}.norm"
        weights[f"{norm}.weight"], weights[f"{norm}.bias"] = np.ones(WIDTH, np.float32), np.zeros(WIDTH, np.float32)
        inputs = [f"sum{i}", f"{norm}.weight", f"{norm}.bias"]
        nodes.append(helper.make_node("LayerNormalization", inputs, [f"x{i + 1}"]))
    nodes.append(helper.make_node("MatMul", [f"x{BLOCKS}", weight("body.head.weight", WIDTH, DIM)], ["head"]))
    nodes.append(helper.make_node("Mul", ["head", "clipped"], ["vector"]))
    graph = helper.make_graph(
        nodes,
        "layers",
        [
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 5]),
            helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["batch", 1]),
        ],
        [helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["batch", DIM])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def inputs(count: int = 40) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(9)
    return [{"features": f, "mask": np.ones(1, np.float32)} for f in rng.normal(size=(count, 5)).astype(np.float32)]


def bundle(folder: Path) -> Bundle:
    """``spoiled-1`` and ``renamed`` (no shared names) on onnxruntime, ``openvino-good`` and ``openvino-spoiled-2``."""
    work = folder / "work"
    work.mkdir(parents=True)
    card = Card(
        name="layers",
        modality="tensor",
        inputs=(TensorSpec("features", "float32", ("batch", 5)), TensorSpec("mask", "float32", ("batch", 1))),
        outputs=(TensorSpec("vector", "float32", ("batch", DIM)),),
        embedding=Embedding("vector", DIM, "none", False),
        preprocess={"kind": "none"},
        limits=Limits(),
    )
    made = {
        "openvino-good": ("openvino", model(work / "good.onnx")),
        "spoiled-1": ("onnxruntime", model(work / "spoiled1.onnx", 1)),
        "openvino-spoiled-2": ("openvino", model(work / "spoiled2.onnx", 2)),
        "renamed": ("onnxruntime", _renamed(work)),
    }
    variants = [
        (Variant(name, target, "fp32", f"models/{name}.onnx"), {f"models/{name}.onnx": path})
        for name, (target, path) in made.items()
    ]
    raw = {key: np.stack([value[key] for value in inputs(4)]) for key in ("features", "mask")}
    contents = Contents(
        card=card,
        portable=model(work / "portable.onnx"),
        variants=variants,
        files=write_selftest(work, "tensor", raw, np.zeros((4, DIM), np.float32)),
        selftest=SelfTest("selftest/inputs.npz", "selftest/reference.npy", {"openvino-good": 0.9}),
        default="spoiled-1",
    )
    return write_bundle(folder / "layers.bundle", contents)


def _renamed(work: Path) -> Path:
    import onnx

    path = model(work / "renamed.onnx")
    graph_model = onnx.load(path)
    kept = {"features", "mask", "vector", *(tensor.name for tensor in graph_model.graph.initializer)}
    for node in graph_model.graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = name if name in kept else f"other_{name}"
    onnx.save(graph_model, path)
    return path
