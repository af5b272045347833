import json

import numpy as np
import pytest

from deploykit.bundle.write import Contents, write_bundle, write_selftest
from deploykit.cli import main
from deploykit.runtime.manifest import Card, Embedding, Limits, SelfTest, TensorSpec, Variant

WORDS = {"[PAD]": 0, "[UNK]": 1, "hello": 2, "world": 3, "cat": 4}
TABLE = np.random.default_rng(3).normal(size=(len(WORDS), 6)).astype(np.float32)


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    """Runs ``deploykit …`` in an empty folder with an empty store; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEPLOYKIT_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "cache"))

    def run(*arguments):
        code = main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def bundle(tmp_path):
    """A bundle that encodes texts: the mean of a random vector per word, on onnxruntime."""
    pytest.importorskip("onnxruntime")
    work = tmp_path / "made"
    (work / "preprocess").mkdir(parents=True)
    _save_tokenizer(work / "preprocess" / "tokenizer.json")
    _save_model(work / "model.onnx")
    texts = ["hello", "hello world"]
    reference = np.stack([TABLE[[2]].mean(0), TABLE[[2, 3]].mean(0)])
    files = {"preprocess/tokenizer.json": work / "preprocess" / "tokenizer.json"}
    proof = {"cases": 9, "cosine_min": 0.9999997, "relative_error_max": 1e-6, "worst_at": {"batch": 2, "length": 7}}
    variant = Variant("onnxruntime-fp32", "onnxruntime", "fp32", "models/fp32.onnx", proof=proof)
    contents = Contents(
        card=_card(),
        portable=work / "model.onnx",
        variants=[(variant, {})],
        files=files | write_selftest(work, "text", texts, reference),
        selftest=SelfTest("selftest/inputs.json", "selftest/reference.npy", {"onnxruntime-fp32": 0.9999}),
        default="onnxruntime-fp32",
        refused=[{"variant": "openvino-bf16", "reason": "cosine 0.82 at length 32", "hint": "take fp32"}],
    )
    write_bundle(tmp_path / "tiny.bundle", contents)
    return tmp_path / "tiny.bundle"


def _card():
    axes = ("batch", "length")
    return Card(
        name="tiny",
        modality="text",
        inputs=(TensorSpec("input_ids", "int64", axes), TensorSpec("attention_mask", "int64", axes)),
        outputs=(TensorSpec("sentence_embedding", "float32", ("batch", 6)),),
        embedding=Embedding("sentence_embedding", 6, "mean", False),
        preprocess={"kind": "text", "tokenizer": "preprocess/tokenizer.json", "max_length": 32},
        limits=Limits({"length": (1, 32)}),
    )


def _save_tokenizer(path):
    settings = {
        "version": "1.0",
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": WORDS, "unk_token": "[UNK]"},
    }
    empty = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    path.write_text(json.dumps({**settings, **empty, "added_tokens": []}))


def _save_model(path):
    from onnx import TensorProto, checker, helper, numpy_helper, save

    node = helper.make_node
    axes = ["batch", "length"]
    nodes = [
        node("Gather", ["table", "input_ids"], ["tokens"]),
        node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["mask", "last"], ["mask3"]),
        node("Mul", ["tokens", "mask3"], ["kept"]),
        node("ReduceSum", ["kept", "one"], ["total"], keepdims=0),
        node("ReduceSum", ["mask3", "one"], ["count"], keepdims=0),
        node("Div", ["total", "count"], ["sentence_embedding"]),
    ]
    constants = {"table": TABLE, "last": np.array([2]), "one": np.array([1])}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(n, TensorProto.INT64, axes) for n in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["batch", 6])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    checker.check_model(model)
    save(model, path)
