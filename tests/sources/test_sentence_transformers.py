"""Folders of sentence-transformers give its own vectors, without it."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from deploykit.errors import RemoteCodeError, SourceError  # noqa: E402
from deploykit.runtime.preprocess import open_preprocessor  # noqa: E402
from deploykit.sources import Options, open_source  # noqa: E402
from tests import tiny  # noqa: E402

STRANGE = [*tiny.TEXTS, "", "Ünïcödé 漢字 😀 naïve", "long " * 400, "   spaced   out ", "[SEP] x [CLS]"]
TANH = "torch.nn.modules.activation.Tanh"


def encode(source, texts, root, kind=None):
    """Texts to vectors through the runtime's preprocessing and the torch module."""
    for name, path in source.files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(path.read_bytes())
    preprocessor = open_preprocessor(source.card, root)
    feeds = preprocessor.collate(preprocessor.items(texts, kind=kind))
    return source.module(**{key: torch.from_numpy(value) for key, value in feeds.items()}).numpy()


def reference(folder, texts, **settings):
    """What sentence-transformers itself gives."""
    package = pytest.importorskip("sentence_transformers")
    return package.SentenceTransformer(str(folder), device="cpu").encode(texts, **settings)


def worst_cosine(one, other):
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return float(((one * other).sum(axis=1) / norms).min())


@pytest.mark.parametrize(
    "pooling",
    [
        {"pooling_mode_mean_tokens": True},
        {"pooling_mode_cls_token": True},
        {"pooling_mode_max_tokens": True},
        {"pooling_mode_mean_sqrt_len_tokens": True},
        {"pooling_mode_weightedmean_tokens": True},
        {"pooling_mode_lasttoken": True},
        {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True, "pooling_mode_cls_token": True},
        {"pooling_mode": ["lasttoken", "mean"]},
        {"pooling_mode": "weightedmean"},
    ],
    ids=lambda pooling: "+".join(pooling) if len(pooling) > 1 or "pooling_mode" not in pooling else "new",
)
def test_every_pooling_mode_matches(tmp_path, pooling):
    folder = tiny.tiny_sentence_transformer(tmp_path / "model", pooling)
    source = open_source(str(folder))
    assert worst_cosine(encode(source, STRANGE, tmp_path), reference(folder, STRANGE)) >= 0.999999


def test_dense_layer_norm_and_normalize_match(tmp_path):
    dense = {"in_features": 24, "out_features": 10, "bias": True, "activation_function": TANH}
    extra = (("Dense", dense), ("LayerNorm", {"dimension": 10}), ("Normalize", {}))
    folder = tiny.tiny_sentence_transformer(tmp_path / "model", {"pooling_mode_mean_tokens": True}, extra)
    source = open_source(str(folder))
    vectors = encode(source, STRANGE, tmp_path)
    assert source.card.embedding.dim == 10
    assert source.card.embedding.normalized
    assert worst_cosine(vectors, reference(folder, STRANGE)) >= 0.999999
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)


def test_a_folder_saved_by_the_installed_version_matches(tmp_path):
    package = pytest.importorskip("sentence_transformers")
    old = tiny.tiny_sentence_transformer(tmp_path / "old", {"pooling_mode_mean_tokens": True}, (("Normalize", {}),))
    package.SentenceTransformer(str(old), device="cpu").save(str(tmp_path / "new"))
    source = open_source(str(tmp_path / "new"))
    assert source.card.preprocess["max_length"] == 32
    assert worst_cosine(encode(source, STRANGE, tmp_path), reference(old, STRANGE)) >= 0.999999


def test_prompts_are_carried_and_match(tmp_path):
    settings = {"prompts": {"query": "the cat ", "passage": ""}, "default_prompt_name": "query"}
    folder = tiny.tiny_sentence_transformer(tmp_path / "model", {"pooling_mode_mean_tokens": True}, **settings)
    source = open_source(str(folder))
    assert source.card.preprocess["default_prompt"] == "query"
    texts = list(tiny.TEXTS)
    assert worst_cosine(encode(source, texts, tmp_path), reference(folder, texts)) >= 0.999999
    passages = encode(source, texts, tmp_path, kind="passage")
    assert worst_cosine(passages, reference(folder, texts, prompt_name="passage")) >= 0.999999


def test_lower_casing_is_done_by_the_tokenizer(tmp_path):
    folder = tiny.tiny_sentence_transformer(tmp_path / "model", {"pooling_mode_mean_tokens": True})
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    data["normalizer"]["lowercase"] = False
    path.write_text(json.dumps(data))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 32, "do_lower_case": True}))
    vectors = encode(open_source(str(folder)), ["The CAT", "the cat"], tmp_path)
    np.testing.assert_array_equal(vectors[0], vectors[1])


def test_max_length_is_capped_by_the_positions(tmp_path):
    folder = tiny.tiny_sentence_transformer(tmp_path / "model", {"pooling_mode_mean_tokens": True})
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 9999}))
    source = open_source(str(folder))
    assert source.card.preprocess["max_length"] == 64
    assert max(source.sizes["length"]) == 64


def test_options_override_pooling_normalisation_and_dimension(tmp_path):
    folder = tiny.tiny_sentence_transformer(tmp_path / "m", {"pooling_mode_mean_tokens": True}, (("Normalize", {}),))
    source = open_source(str(folder), Options(pooling="cls", normalize=True, dim=8, max_length=16))
    vectors = encode(source, list(tiny.TEXTS), tmp_path)
    assert vectors.shape == (len(tiny.TEXTS), 8)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    assert source.card.embedding.pooling == "cls"
    plain = open_source(str(folder), Options(normalize=False))
    assert not plain.card.embedding.normalized
    assert not np.allclose(np.linalg.norm(encode(plain, ["a cat"], tmp_path), axis=1), 1.0)


@pytest.mark.parametrize("mode", ["mean", "cls", "max", "lasttoken", "mean_sqrt_len_tokens"])
def test_the_prompt_is_left_out_of_the_pooling(tmp_path, mode):
    pooling = {"pooling_mode": mode, "include_prompt": False}
    settings = {"prompts": {"query": "the river: ", "none": ""}, "default_prompt_name": "query"}
    folder = tiny.tiny_sentence_transformer(tmp_path / "model", pooling, **settings)
    source = open_source(str(folder))
    texts = [text for text in STRANGE if text or mode != "max"]
    assert worst_cosine(encode(source, texts, tmp_path), reference(folder, texts)) >= 0.999999
    plain = encode(source, texts, tmp_path, kind="none")
    assert worst_cosine(plain, reference(folder, texts, prompt_name="none")) >= 0.999999


def test_leaving_the_prompt_out_of_a_weighted_mean_is_refused(tmp_path):
    pooling = {"pooling_mode": "weightedmean", "include_prompt": False}
    folder = tiny.tiny_sentence_transformer(tmp_path / "model", pooling, prompts={"query": "a "})
    with pytest.raises(SourceError, match="include_prompt"):
        open_source(str(folder))


def test_a_module_of_its_own_code_is_refused(tmp_path):
    folder = tiny.tiny_sentence_transformer(tmp_path / "model", {"pooling_mode_mean_tokens": True})
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "custom_code.MyPooling"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(RemoteCodeError, match=r"custom_code\.MyPooling"):
        open_source(str(folder))


def test_a_chain_that_is_not_understood_is_named(tmp_path):
    folder = tiny.tiny_sentence_transformer(tmp_path / "model", {"pooling_mode_mean_tokens": True})
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "sentence_transformers.models.LSTM"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(SourceError, match="LSTM"):
        open_source(str(folder))


def test_minilm_matches_sentence_transformers(minilm, tmp_path):
    source = open_source(str(minilm))
    assert (source.card.embedding.dim, source.card.preprocess["max_length"]) == (384, 256)
    assert source.card.provenance["license"] == "apache-2.0"
    texts = [*STRANGE, "A man is playing a guitar.", "He doesn't like naïve cafés — at all!"]
    assert worst_cosine(encode(source, texts, tmp_path), reference(minilm, texts)) >= 0.999999
