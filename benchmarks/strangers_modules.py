"""Rarer modules of sentence-transformers, and folders of its other kinds of model, which are no single embedding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.coverage_models import BERT, TOWERS
from benchmarks.strangers_images import pictures
from benchmarks.strangers_kit import (
    SHORT,
    TEXTS,
    TRAP,
    Call,
    Case,
    Rows,
    by_sentence_transformers,
    edit_json,
    roberta_tokenizer,
    save_model,
    spread,
    wordpiece,
    write_json,
)
from benchmarks.strangers_sentence import WIDTH, judged, modules, old_folder, saved
from benchmarks.strangers_text import bert

ROWS = Rows("modules")


def chained(folder: Path, *chain: Any, **how: Any) -> Path:
    """A folder that sentence-transformers saves of these modules."""
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(modules=list(chain), device="cpu", **how).save(str(folder))
    return folder


def _transformer(place: Path, name: str = "bert", seed: int = 1) -> Any:
    from sentence_transformers.sentence_transformer.modules import Transformer

    first = Transformer(str(bert(place / name)))
    spread(first.auto_model, seed)
    return first


def _pooling(width: int = WIDTH, mode: str = "mean") -> Any:
    from sentence_transformers.sentence_transformer.modules import Pooling

    return Pooling(width, mode)


@ROWS.row("router-query-and-document")
def _router(place: Path) -> Case:
    from sentence_transformers.base.modules import Dense, Router

    query = [_transformer(place, "a"), _pooling(), spread(Dense(WIDTH, 20), 3)]
    document = [_transformer(place, "b", 2), _pooling(), spread(Dense(WIDTH, 20), 4)]
    routes = Router.for_query_document(query_modules=query, document_modules=document)
    folder = chained(place / "m", routes)
    calls = [
        Call(SHORT, by_sentence_transformers(folder, SHORT, name, prompts={"query": "", "document": ""}), name)
        for name in ("query", "document")
    ]
    return Case(folder, tuple(calls))


@ROWS.row("asym-of-old")
def _asym(place: Path) -> Case:
    """The layout that versions below 5 wrote: one transformer, then Asym with a Dense for each side."""
    folder = old_folder(place / "m")
    modules(folder, ("Transformer", ""), ("Pooling", "1_Pooling"), ("Asym", "2_Asym"))
    inner = {"2_Asym/query_Dense": 3, "2_Asym/doc_Dense": 4}
    from sentence_transformers.base.modules import Dense

    for path, seed in inner.items():
        (folder / path).mkdir(parents=True)
        spread(Dense(WIDTH, 20), seed).save(str(folder / path))
    kinds = {"query_Dense": "sentence_transformers.models.Dense.Dense"}
    kinds["doc_Dense"] = kinds["query_Dense"]
    structure = {"query": ["query_Dense"], "doc": ["doc_Dense"]}
    config = {"types": kinds, "structure": structure, "parameters": {"allow_empty_key": True}}
    write_json(folder / "2_Asym" / "config.json", config)
    return Case(folder)


@ROWS.row("static-embedding")
def _static(place: Path) -> Case:
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from transformers import AutoTokenizer

    wordpiece(place / "tokenizer", model_max_length=10**6)
    tokenizer = AutoTokenizer.from_pretrained(place / "tokenizer")
    first = spread(StaticEmbedding(tokenizer.backend_tokenizer, embedding_dim=WIDTH))
    return judged(chained(place / "m", first))


@ROWS.row("static-embedding-then-normalize")
def _static_unit(place: Path) -> Case:
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
    from transformers import AutoTokenizer

    wordpiece(place / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(place / "tokenizer")
    first = spread(StaticEmbedding(tokenizer.backend_tokenizer, embedding_dim=WIDTH))
    return judged(chained(place / "m", first, Normalize()))


def _word_embeddings() -> Any:
    import numpy as np
    from sentence_transformers.sentence_transformer.modules import WordEmbeddings
    from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer

    words = ["the", "cat", "dog", "river", "house", "long", "text", "about", "rivers", "quick", "fox", "word", "sat"]
    table = np.random.default_rng(0).standard_normal((len(words), WIDTH)).astype("float32")
    return WordEmbeddings(WhitespaceTokenizer(words, stop_words=[]), table, max_seq_length=20)


_WORDS = ("the cat", "river", "The quick fox, about the long text", "word sat dog house rivers the the the")


def _of_words(place: Path, *more: Callable[[], Any], width: int = WIDTH) -> Case:
    folder = chained(place / "m", _word_embeddings(), *(make() for make in more), _pooling(width))
    return Case(folder, (Call(_WORDS, by_sentence_transformers(folder, _WORDS)),))


def _cnn() -> Any:
    from sentence_transformers.sentence_transformer.modules import CNN

    return spread(CNN(WIDTH, out_channels=20, kernel_sizes=[1, 3]), 3)


def _lstm() -> Any:
    from sentence_transformers.sentence_transformer.modules import LSTM

    return spread(LSTM(WIDTH, 15), 3)


ROWS.add("word-embeddings", _of_words)
ROWS.add("word-embeddings-cnn", lambda place: _of_words(place, _cnn, width=40))
ROWS.add("word-embeddings-lstm", lambda place: _of_words(place, _lstm, width=30))


@ROWS.row("bag-of-words-dense")
def _bow(place: Path) -> Case:
    from sentence_transformers.base.modules import Dense
    from sentence_transformers.sentence_transformer.modules import BoW

    words = ["the", "cat", "dog", "river", "house", "long", "text", "about", "rivers", "quick", "fox", "word", "sat"]
    first = BoW(words, word_weights={"cat": 2.0, "river": 0.5})
    folder = chained(place / "m", first, spread(Dense(len(words), 9), 3))
    return Case(folder, (Call(_WORDS, by_sentence_transformers(folder, _WORDS)),))


@ROWS.row("weighted-layer-pooling")
def _weighted_layers(place: Path) -> Case:
    import torch
    from sentence_transformers.sentence_transformer.modules import Transformer, WeightedLayerPooling

    bert(place / "bert")
    edit_json(place / "bert" / "config.json", output_hidden_states=True)
    layers = WeightedLayerPooling(WIDTH, num_hidden_layers=2, layer_start=1)
    with torch.no_grad():
        layers.layer_weights.copy_(torch.tensor([0.3, 1.7]))
    return judged(chained(place / "m", Transformer(str(place / "bert")), layers, _pooling()))


@ROWS.row("word-embeddings-with-weights")
def _word_weights(place: Path) -> Case:
    from sentence_transformers.sentence_transformer.modules import WordWeights

    first = _word_embeddings()
    weights = WordWeights(first.tokenizer.get_vocab(), {"cat": 3.0, "river": 0.2, "the": 0.1}, unknown_word_weight=1)
    folder = chained(place / "m", first, weights, _pooling())
    return Case(folder, (Call(_WORDS, by_sentence_transformers(folder, _WORDS)),))


def _clip_model(place: Path) -> Path:
    folder = place / "clip-ViT-B-32"
    inner = folder / "0_CLIPModel"
    ids = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    size = roberta_tokenizer(inner, model_max_length=64)
    text = {**TOWERS["text_config"], **ids, "vocab_size": size, "max_position_embeddings": 70}
    save_model(inner, "CLIPConfig", {**TOWERS, "text_config": text})
    how = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 48}}
    write_json(inner / "preprocessor_config.json", {**how, "crop_size": {"height": 48, "width": 48}})
    modules(folder, ("CLIPModel", "0_CLIPModel"))
    return folder


ROWS.add("clip-model-without-a-tower-named", lambda place: Case(_clip_model(place)))


@ROWS.row("clip-model-texts")
def _clip_texts(place: Path) -> Case:
    folder = _clip_model(place)
    return Case(folder, (Call(SHORT, by_sentence_transformers(folder, SHORT)),), ("--tower", "text"))


@ROWS.row("clip-model-pictures")
def _clip_pictures(place: Path) -> Case:
    from PIL import Image

    folder = _clip_model(place)
    paths = pictures(place / "pictures")
    opened = [Image.open(path) for path in paths]
    call = Call([str(path) for path in paths], by_sentence_transformers(folder, opened))
    return Case(folder, (call,), ("--tower", "vision"))


@ROWS.row("module-of-own-code")
def _own_module(place: Path) -> Case:
    folder = old_folder(place / "m")
    code = "from torch import nn\nclass Scale(nn.Module):\n    def forward(self, features):\n        return features\n"
    (folder / "custom_scale.py").write_text(code, encoding="utf-8")
    modules(folder, ("Transformer", ""), ("Pooling", "1_Pooling"), ("custom_scale.Scale", "2_Scale"))
    return Case(folder)


@ROWS.row("transformer-with-own-code-untrusted")
def _own_transformer(place: Path) -> Case:
    folder = old_folder(place / "m")
    code = "from transformers import BertModel\nclass Own(BertModel):\n    pass\n"
    (folder / "modeling_own.py").write_text(code, encoding="utf-8")
    edit_json(folder / "config.json", auto_map={"AutoModel": "modeling_own.Own"})
    return Case(folder)


@ROWS.row("own-code-that-the-folder-itself-trusts")
def _trusts_itself(place: Path) -> Case:
    """A folder's own settings must not allow its own code."""
    folder = old_folder(place / "m", None, {"max_seq_length": 32, "model_args": {"trust_remote_code": True}})
    code = f"from pathlib import Path\nPath({str(place.parent / TRAP)!r}).touch()\n"
    code += "from transformers import BertModel\nclass Own(BertModel):\n    pass\n"
    (folder / "modeling_own.py").write_text(code, encoding="utf-8")
    edit_json(folder / "config.json", auto_map={"AutoModel": "modeling_own.Own"})
    return Case(folder)


@ROWS.row("cross-encoder")
def _cross_encoder(place: Path) -> Case:
    folder = place / "reranker"
    size = wordpiece(folder)
    settings = {**BERT, "pad_token_id": 0, "vocab_size": size, "num_labels": 1}
    save_model(folder, "BertConfig", settings, "BertForSequenceClassification")
    edit_json(folder / "config.json", sentence_transformers={"version": "4.0.1", "activation_fn": "torch.nn.Sigmoid"})
    return Case(folder)


@ROWS.row("sparse-encoder-splade")
def _splade(place: Path) -> Case:
    from sentence_transformers.sparse_encoder.modules import MLMTransformer, SpladePooling

    folder = place / "bert"
    size = wordpiece(folder)
    save_model(folder, "BertConfig", {**BERT, "pad_token_id": 0, "vocab_size": size}, "BertForMaskedLM")
    from sentence_transformers import SparseEncoder

    encoder = SparseEncoder(modules=[MLMTransformer(str(folder)), SpladePooling()], device="cpu")
    encoder.save(str(place / "splade"))
    return Case(place / "splade")


@ROWS.row("colbert-token-projection")
def _colbert(place: Path) -> Case:
    folder = old_folder(place / "colbert")
    modules(folder, ("Transformer", ""), ("pylate.models.Dense.Dense", "1_Dense"))
    write_json(folder / "1_Dense" / "config.json", {"in_features": WIDTH, "out_features": 20, "bias": False})
    return Case(folder)


@ROWS.row("transformer-alone-without-pooling")
def _alone(place: Path) -> Case:
    folder = old_folder(place / "m")
    modules(folder, ("Transformer", ""))
    return Case(folder)


@ROWS.row("pooling-folder-missing")
def _no_pooling(place: Path) -> Case:
    folder = old_folder(place / "m")
    (folder / "1_Pooling" / "config.json").unlink()
    return Case(folder)


@ROWS.row("dense-weights-missing")
def _no_dense(place: Path) -> Case:
    folder = old_folder(place / "m")
    modules(folder, ("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"))
    write_json(folder / "2_Dense" / "config.json", {"in_features": WIDTH, "out_features": 20, "bias": True})
    return Case(folder)


@ROWS.row("onnx-variants-beside-the-weights")
def _with_onnx(place: Path) -> Case:
    """Folders on the hub carry onnx/ and openvino/ beside the weights, at other states now and then."""
    folder = saved(place / "m")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model_quantized.onnx").write_bytes(b"not read")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# model\n", encoding="utf-8")
    return Case(folder, (Call(TEXTS, by_sentence_transformers(folder)),))
