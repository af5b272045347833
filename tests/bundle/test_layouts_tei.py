"""Text Embeddings Inference's folder, read as its router and its ONNX backend read theirs."""

import json
from dataclasses import replace

import numpy as np
import pytest

from deploykit.bundle.layouts import write
from deploykit.errors import RecipeError
from deploykit.runtime.manifest import Embedding, Limits, TensorSpec
from tests.runtime import made

pytest.importorskip("onnx")
pytest.importorskip("tokenizers")

# What the server's structures have without a default (router/src/lib.rs, backends/ort/src/lib.rs), and the padding.
CONFIG = {
    "architectures": list,
    "model_type": str,
    "max_position_embeddings": int,
    "pad_token_id": int,
    "hidden_size": int,
    "num_hidden_layers": int,
}
POOLINGS = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_lasttoken": "last"}
# Model types for which the server changes the tokenizer or the positions.
SPECIAL = {"qwen2", "roberta", "xlm-roberta", "camembert"}


def page(folder, name):
    return json.loads((folder / name).read_text())


def test_the_server_finds_what_it_reads(tmp_path):
    bundle = made.bundle(tmp_path)
    write(bundle.root, "tei", tmp_path / "out")
    config = page(tmp_path / "out", "config.json")
    assert {key: type(value) for key, value in config.items()} == CONFIG
    assert config["model_type"] not in SPECIAL
    assert not any(name.endswith(("Classification", "MaskedLM")) for name in config["architectures"])
    pooling = page(tmp_path / "out", "1_Pooling/config.json")
    assert [POOLINGS[key] for key in POOLINGS if pooling[key]] == ["mean"]
    assert page(tmp_path / "out", "sentence_bert_config.json")["max_seq_length"] == made.MAX_LENGTH
    assert page(tmp_path / "out", "tokenizer_config.json") == {"padding_side": "right"}


@pytest.mark.parametrize(("pooling", "said"), [("cls", "cls"), ("last", "last"), ("mean", "mean"), ("max", "mean")])
def test_the_pooling_is_one_of_those_that_it_demands(tmp_path, pooling, said):
    card = replace(made.card(), embedding=Embedding("sentence_embedding", 6, pooling, False))
    write(made.bundle(tmp_path, card=card).root, "tei", tmp_path / "out")
    found = page(tmp_path / "out", "1_Pooling/config.json")
    assert [POOLINGS[key] for key in POOLINGS if found[key]] == [said]


def test_prompts_sides_and_lengths_follow(tmp_path):
    prompts = {"query": "query: ", "passage": ""}
    options = {"prompts": prompts, "default_prompt": "query", "padding_side": "left", "truncation_side": "left"}
    card = replace(made.card(**options, pad_id=1), limits=Limits({"length": (3, 50)}))
    write(made.bundle(tmp_path, card=card).root, "tei", tmp_path / "out")
    assert page(tmp_path / "out", "config_sentence_transformers.json") == {"prompts": prompts}
    assert page(tmp_path / "out", "tokenizer_config.json") == {"padding_side": "left"}
    assert page(tmp_path / "out", "config.json")["pad_token_id"] == 1
    assert page(tmp_path / "out", "sentence_bert_config.json")["max_seq_length"] == 50
    text = (tmp_path / "out" / "README.md").read_text()
    assert "--default-prompt-name query" in text
    assert '"truncation_direction": "Left"' in text
    assert '"normalize": false' in text
    assert "fewer than 3 tokens" in text


def test_what_the_server_does_gives_the_bundles_vectors(tmp_path):
    """Its steps, in Python: tokenise and cut, pad to the longest, run, take ``sentence_embedding`` as it is."""
    onnxruntime = pytest.importorskip("onnxruntime")
    from tokenizers import Tokenizer

    from deploykit.runtime import load

    bundle = made.bundle(tmp_path)
    write(bundle.root, "tei", tmp_path / "out")
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert tokenizer.padding is None
    assert tokenizer.truncation is None
    tokenizer.enable_truncation(page(tmp_path / "out", "sentence_bert_config.json")["max_seq_length"])
    rows = [encoding.ids for encoding in tokenizer.encode_batch(list(made.TEXTS))]
    width = max(map(len, rows))
    pad = page(tmp_path / "out", "config.json")["pad_token_id"]
    feeds = {
        "input_ids": np.array([row + [pad] * (width - len(row)) for row in rows], np.int64),
        "attention_mask": np.array([[1] * len(row) + [0] * (width - len(row)) for row in rows], np.int64),
    }
    session = onnxruntime.InferenceSession(tmp_path / "out" / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    outputs = dict(zip([output.name for output in session.get_outputs()], session.run(None, feeds), strict=True))
    with load(bundle.root) as encoder:
        assert np.allclose(outputs["sentence_embedding"], encoder.encode(list(made.TEXTS)), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"modality": "image"}, "this one is for image"),
        ({"inputs": (TensorSpec("input_ids", "int64", ("batch", "length")),)}, "always gives 'attention_mask'"),
        ({"embedding": Embedding("vector", 6, "mean", False)}, "the graph's is 'vector'"),
        ({"outputs": (TensorSpec("sentence_embedding", "float16", ("batch", 6)),)}, "is float16"),
    ],
)
def test_what_it_cannot_serve_is_refused(tmp_path, change, reason):
    bundle = made.bundle(tmp_path, card=replace(made.card(), **change))
    with pytest.raises(RecipeError, match=reason) as refusal:
        write(bundle.root, "tei", tmp_path / "out")
    assert "triton" in refusal.value.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["lowercase", "strip"])
def test_preprocessing_that_it_has_not_is_refused(tmp_path, option):
    bundle = made.bundle(tmp_path, card=made.card(**{option: True}))
    with pytest.raises(RecipeError, match=f"'{option}' before the tokenizer"):
        write(bundle.root, "tei", tmp_path / "out")


def test_a_chat_template_is_refused(tmp_path):
    bundle = made.bundle(tmp_path, card=made.card(frames={"": {"before": "w1", "after": ""}}))
    with pytest.raises(RecipeError, match="a chat template"):
        write(bundle.root, "tei", tmp_path / "out")


def test_positions_counted_otherwise_are_refused(tmp_path):
    card = made.card(padding_side="left")
    positions = TensorSpec("position_ids", "int64", ("batch", "length"))
    bundle = made.bundle(tmp_path, card=replace(card, inputs=(*card.inputs, positions)))
    with pytest.raises(RecipeError, match="position_ids over the padding"):
        write(bundle.root, "tei", tmp_path / "out")
