"""A text encoder small enough to write by hand: the mean of one vector per word, with its tokenizer, as a bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deploykit.bundle.write import Contents, write_bundle, write_selftest
from deploykit.runtime.bundle import Bundle
from deploykit.runtime.manifest import Card, Embedding, Limits, SelfTest, TensorSpec, Variant

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(40)), "query", ":")
TABLE = np.random.default_rng(7).normal(size=(len(WORDS), 6)).astype(np.float32)
MAX_LENGTH = 96
TEXTS = ("w1 w2 w3", "", "w4", "w5 " * 60, "unheard of")


def card(**preprocess) -> Card:
    """The card of the tiny encoder; ``preprocess`` adds options."""
    options = {"kind": "text", "tokenizer": "preprocess/tokenizer.json", "max_length": MAX_LENGTH, **preprocess}
    return Card(
        name="tiny",
        modality="text",
        inputs=tuple(TensorSpec(name, "int64", ("batch", "length")) for name in ("input_ids", "attention_mask")),
        outputs=(TensorSpec("sentence_embedding", "float32", ("batch", 6)),),
        embedding=Embedding("sentence_embedding", 6, "mean", False),
        preprocess=options,
        limits=Limits({"length": (1, MAX_LENGTH)}),
        provenance={"source": "made by hand"},
    )


def expected(text: str) -> np.ndarray:
    """What the encoder must return for a text, worked out without it."""
    words = [w if w in WORDS else "[UNK]" for w in text.split()][: MAX_LENGTH - 2]
    return TABLE[[WORDS.index(w) for w in ("[CLS]", *words, "[SEP]")]].mean(axis=0)


def save_tokenizer(path: Path) -> Path:
    """A tokenizer.json of whole words that, like real ones, brings padding and truncation of its own."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(length=16)
    tokenizer.enable_truncation(5)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return path


def save_model(path: Path, table: np.ndarray = TABLE) -> Path:
    """The ONNX: look up, mask, mean."""
    from onnx import TensorProto, helper, numpy_helper, save

    node = helper.make_node
    nodes = [
        node("Gather", ["table", "input_ids"], ["tokens"]),
        node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["mask", "last"], ["mask3"]),
        node("Mul", ["tokens", "mask3"], ["kept"]),
        node("ReduceSum", ["kept", "one"], ["total"], keepdims=0),
        node("ReduceSum", ["mask3", "one"], ["count"], keepdims=0),
        node("Div", ["total", "count"], ["sentence_embedding"]),
    ]
    constants = {"table": table, "last": np.array([2]), "one": np.array([1])}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["batch", table.shape[1]])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def contents(work: Path, **changes) -> Contents:
    """The tiny encoder's contents, made below ``work``; ``changes`` replace fields of `Contents`."""
    files = {"preprocess/tokenizer.json": save_tokenizer(work / "tokenizer.json")}
    files |= write_selftest(work, "text", list(TEXTS), np.stack([expected(text) for text in TEXTS]))
    model = save_model(work / "model.onnx")
    settings = {
        "card": card(),
        "portable": model,
        "variants": [
            (
                Variant("onnxruntime-fp32", "onnxruntime", "fp32", "models/fp32.onnx", proof={"cosine_min": 0.9999999}),
                {},
            ),
            (
                Variant(
                    "openvino-fp32",
                    "openvino",
                    "fp32",
                    "models/openvino-fp32.onnx",
                    {"INFERENCE_PRECISION_HINT": "f32"},
                ),
                {"models/openvino-fp32.onnx": model},
            ),
        ],
        "files": files,
        "selftest": SelfTest("selftest/inputs.json", "selftest/reference.npy", {"onnxruntime-fp32": 0.99999}),
        "default": "onnxruntime-fp32",
        "provenance": {"deploykit": "0.1.0"},
    }
    return Contents(**{**settings, **changes})


def bundle(folder: Path, **changes) -> Bundle:
    """A written bundle below ``folder``."""
    return write_bundle(folder / "tiny.bundle", contents(folder / "work", **changes))
