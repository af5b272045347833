"""Text encoders small enough to write by hand: the mean of one vector per word, a matrix product, a length of one.

With every fault that a gate is for: another pooling, no normalisation, vectors moved by a careless quantizer, an int8
product that the engine does not fuse.
"""

import json
from pathlib import Path

import numpy as np

from deploykit.bundle.write import Contents, write_bundle, write_selftest
from deploykit.runtime.manifest import Card, Embedding, Limits, SelfTest, TensorSpec, Variant
from tests.runtime.made import WORDS, save_tokenizer

DIM = 16
_RNG = np.random.default_rng(11)
TABLE = _RNG.normal(size=(len(WORDS), DIM)).astype(np.float32)
WEIGHT = _RNG.normal(size=(DIM, DIM)).astype(np.float32) / 4
ROTATION = np.linalg.qr(_RNG.normal(size=(DIM, DIM)))[0].astype(np.float32)
TEXTS = ["w1 w2 w3", "w4", "w5 w6 " * 10, "w7 w8 w9 w10"]


def texts(count):
    """Different sentences of 1 to 12 of the words."""
    rng = np.random.default_rng(3)
    return [" ".join(f"w{i}" for i in rng.integers(0, 40, size=rng.integers(1, 13))) for _ in range(count)]


def save_model(path, *, pooling="mean", normalized=True, int8=False, noise=0.0, padding_bytes=0, turned=False):
    """The ONNX; ``noise`` moves the table by that share of its size, ``turned`` turns all vectors by one rotation,
    ``int8`` quantizes the product with Q/DQ.
    """
    from onnx import TensorProto, checker, helper, numpy_helper, save

    node = helper.make_node
    table = TABLE + noise * np.random.default_rng(5).normal(size=TABLE.shape).astype(np.float32)
    constants = {"table": table.astype(np.float32), "last": np.array([2]), "one": np.array([1])}
    nodes = [node("Gather", ["table", "input_ids"], ["tokens"])]
    if pooling == "mean":
        nodes += [
            node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            node("Unsqueeze", ["mask", "last"], ["mask3"]),
            node("Mul", ["tokens", "mask3"], ["kept"]),
            node("ReduceSum", ["kept", "one"], ["total"], keepdims=0),
            node("ReduceSum", ["mask3", "one"], ["count"], keepdims=0),
            node("Div", ["total", "count"], ["pooled"]),
        ]
    else:
        # The last token: as wrong as [CLS] would be where the mean is meant, and not the same for all texts.
        constants |= {"minus_one": np.array([-1]), "second": np.array([-2]), "axis": np.array([1])}
        nodes += [
            node("Slice", ["tokens", "second", "minus_one", "axis"], ["end"]),
            node("Squeeze", ["end", "axis"], ["pooled"]),
            node("Identity", ["attention_mask"], ["unused"]),
        ]
    if int8:
        scale = np.float32(np.abs(WEIGHT).max() / 127)
        constants |= {
            "weight8": np.round(WEIGHT / scale).astype(np.int8),
            "weight_scale": scale,
            "weight_zero": np.int8(0),
            "input_scale": np.float32(6 / 255),
            "input_zero": np.uint8(128),
        }
        nodes += [
            node("QuantizeLinear", ["pooled", "input_scale", "input_zero"], ["pooled8"]),
            node("DequantizeLinear", ["pooled8", "input_scale", "input_zero"], ["x"]),
            node("DequantizeLinear", ["weight8", "weight_scale", "weight_zero"], ["weight"]),
        ]
    else:
        constants["weight"] = WEIGHT @ ROTATION if turned else WEIGHT
        nodes.append(node("Identity", ["pooled"], ["x"]))
    nodes.append(node("MatMul", ["x", "weight"], ["projected"]))
    if normalized:
        constants["small"] = np.float32(1e-12)
        nodes += [
            node("ReduceL2", ["projected", "one"], ["length"], keepdims=1),
            node("Max", ["length", "small"], ["safe"]),
            node("Div", ["projected", "safe"], ["sentence_embedding"]),
        ]
    else:
        nodes.append(node("Identity", ["projected"], ["sentence_embedding"]))
    axes = ["batch", "length"]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(n, TensorProto.INT64, axes) for n in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["batch", DIM])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    if padding_bytes:
        model.metadata_props.add(key="padding", value="x" * padding_bytes)
    checker.check_model(model)
    save(model, path)
    return path


def bundle(place, *, modality_dim=DIM, card=None, settings=None, lowering_noise=0.0, **faults):
    """A bundle at ``place`` with one variant, ``onnxruntime-int8`` with ``int8``, else ``onnxruntime-fp32``;
    ``lowering_noise`` is in the variant and not in the portable model.
    """
    place = Path(place)
    work = place.with_suffix(".work")
    work.mkdir(parents=True)
    portable = save_model(work / "portable.onnx", **{k: v for k, v in faults.items() if k != "int8"})
    precision = "int8" if faults.get("int8") else "fp32"
    name, file = f"onnxruntime-{precision}", f"models/onnxruntime-{precision}.onnx"
    model = save_model(work / "model.onnx", **(faults | ({"noise": lowering_noise} if lowering_noise else {})))
    # What the manifest says of an audit is not believed by a gate.
    boast = {"asked": precision, "products": {precision: 1}, "sentence": f"all in {precision}"}
    variant = Variant(name, "onnxruntime", precision, file, settings or {}, audit=boast)
    files = {"preprocess/tokenizer.json": save_tokenizer(work / "tokenizer.json")}
    files |= write_selftest(work, "text", TEXTS, np.ones((len(TEXTS), modality_dim)))
    contents = Contents(
        card=card or text_card(**{k: v for k, v in faults.items() if k in ("pooling", "normalized")}),
        portable=portable,
        variants=[(variant, {file: model})],
        files=files,
        # What a gate is for came past the self-test.
        selftest=SelfTest("selftest/inputs.json", "selftest/reference.npy", {name: -1.0, "portable": -1.0}),
        default=name,
    )
    return write_bundle(place, contents).root


def text_card(pooling="mean", normalized=True, dim=DIM, modality="text"):
    return Card(
        name="tiny",
        modality=modality,
        inputs=tuple(TensorSpec(name, "int64", ("batch", "length")) for name in ("input_ids", "attention_mask")),
        outputs=(TensorSpec("sentence_embedding", "float32", ("batch", dim)),),
        embedding=Embedding("sentence_embedding", dim, pooling, normalized),
        preprocess={"kind": "text", "tokenizer": "preprocess/tokenizer.json", "max_length": 32}
        if modality == "text"
        else {"kind": "none"},
        limits=Limits({"length": (1, 32)}),
    )


def answer(times_ms, *, rss=100 * 2**20, steal=0.0, hardware="cafe0001", items=(1, 8)):
    """What a measuring process would say: {workload: ms of every call}."""
    points = [
        {"name": name, "times_ms": list(values), "items": count, "wall_s": 1.0, "tokens": None, "padded": None}
        for (name, values), count in zip(times_ms.items(), items, strict=False)
    ]
    noise = {"steal": steal, "frequency": None, "load": 1.0, "context_switches": {"forced": 1, "wanted": 1}}
    machine = {"id": hardware, "cpu": "made up", "cores": 2}
    return {"points": points, "peak_rss_bytes": rss, "noise": noise, "hardware": machine, "effective": {}}


def lines(path, count=600):
    path.write_text("\n".join(texts(count)) + "\n")
    return path


def read(path):
    return json.loads(Path(path).read_text())
