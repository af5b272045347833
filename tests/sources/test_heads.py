"""Heads that a checkpoint was trained with are left out, and never without a word."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import deploykit  # noqa: E402
from deploykit.errors import SourceError  # noqa: E402
from deploykit.sources import Options, open_source  # noqa: E402
from tests import tiny  # noqa: E402
from tests.sources.as_given import TEXTS, bundle_vectors, cosines, library_vectors  # noqa: E402

SIZES = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 40}
BERT = {**SIZES, "vocab_size": 113, "initializer_range": 0.3, "max_position_embeddings": 64}
TEXT_HEADS = ("SequenceClassification", "TokenClassification", "MaskedLM", "QuestionAnswering", "PreTraining")


def saved(model, folder):
    torch.manual_seed(0)
    model().eval().save_pretrained(folder)
    return tiny.wordpiece(folder)


def headed(folder, head):
    kind = getattr(transformers, f"BertFor{head}")
    return saved(lambda: kind(transformers.BertConfig(**BERT)), folder)


@pytest.mark.parametrize("head", TEXT_HEADS)
def test_a_head_of_texts_asks_for_a_pooling(tmp_path, head):
    folder = headed(tmp_path, head)
    with pytest.raises(SourceError, match=f"BertFor{head}") as caught:
        open_source(str(folder))
    assert "--pooling" in caught.value.hint
    source = open_source(str(folder), Options(pooling="mean"))
    assert f"the head of BertFor{head} is left out" in source.card.provenance["notes"][0]
    assert cosines(bundle_vectors(source), library_vectors(folder)).min() > 0.99999


def test_colbert_s_projection_is_missed(tmp_path):
    """Its class is none of transformers: its weights tell that there is more than BERT."""
    from safetensors.torch import load_file, save_file

    folder = tiny.tiny_bert(tmp_path / "colbert")
    weights = load_file(folder / "model.safetensors")
    weights = {f"bert.{key}": value for key, value in weights.items()} | {"linear.weight": torch.ones(12, 24)}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"architectures": ["HF_ColBERT"]}))
    with pytest.raises(SourceError, match=r"HF_ColBERT.*linear\.weight"):
        open_source(str(folder))
    source = open_source(str(folder), Options(pooling="cls"))
    assert "(linear.weight)" in source.card.provenance["notes"][0]


def test_a_base_model_keeps_the_mean(models):
    source = open_source(str(models("bert")))
    assert source.card.embedding.pooling == "mean"
    assert not any("head" in note for note in source.card.provenance["notes"])


def test_a_sentence_transformers_folder_has_chosen(tmp_path):
    folder = tiny.tiny_sentence_transformer(tmp_path / "st", {"pooling_mode_mean_tokens": True})
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"architectures": ["BertForMaskedLM"]}))
    source = open_source(str(folder))
    assert "the head of BertForMaskedLM is left out" in source.card.provenance["notes"][0]


def test_a_classifier_of_pictures_says_that_its_head_is_left_out(tmp_path):
    folder = tiny.tiny_vit(tmp_path / "vit")
    config = transformers.ViTConfig.from_pretrained(folder)
    transformers.ViTForImageClassification(config).eval().save_pretrained(folder)
    note = open_source(str(folder)).card.provenance["notes"][0]
    assert "the head of ViTForImageClassification is left out (classifier.bias, classifier.weight)" in note


def test_a_recogniser_of_speech_says_that_its_head_is_left_out(tmp_path):
    folder = tiny.tiny_wav2vec2(tmp_path / "wav2vec2")
    config = transformers.Wav2Vec2Config.from_pretrained(folder)
    transformers.Wav2Vec2ForCTC(config).eval().save_pretrained(folder)
    note = open_source(str(folder), Options(max_length=2000)).card.provenance["notes"][0]
    assert "the head of Wav2Vec2ForCTC is left out (lm_head.bias, lm_head.weight)" in note


TOWER = {**SIZES, "projection_dim": 14}


def test_a_text_tower_saved_with_its_projection_keeps_it(tmp_path):
    config = transformers.CLIPTextConfig(**TOWER, vocab_size=113, max_position_embeddings=64, eos_token_id=3)
    saved(lambda: transformers.CLIPTextModelWithProjection(config), tmp_path)
    source = open_source(str(tmp_path))
    model = transformers.CLIPTextModelWithProjection.from_pretrained(tmp_path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    feeds = tokenizer(list(TEXTS), padding=True, truncation=True, return_tensors="pt", return_token_type_ids=False)
    with torch.inference_mode():
        want = model(**feeds).text_embeds
    assert want.shape[1] == 14
    assert cosines(bundle_vectors(source), want).min() > 0.99999


def test_an_image_tower_saved_with_its_projection_keeps_it(tmp_path):
    config = transformers.CLIPVisionConfig(**TOWER, image_size=30, patch_size=6)
    torch.manual_seed(0)
    transformers.CLIPVisionModelWithProjection(config).eval().save_pretrained(tmp_path)
    processor = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 30}, "crop_size": 30}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    source = open_source(str(tmp_path))
    model = transformers.CLIPVisionModelWithProjection.from_pretrained(tmp_path).eval()
    pixels = source.make_inputs(3, {}, 0)
    with torch.inference_mode():
        assert cosines(source.module(**pixels), model(**pixels).image_embeds).min() > 0.99999


def test_an_export_says_first_what_it_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_STORE", str(tmp_path / "store"))
    folder = headed(tmp_path / "model", "SequenceClassification")
    recipe = deploykit.Recipe.from_data(
        {
            "source": {"model": str(folder), "pooling": "cls"},
            "bundle": {"output": str(tmp_path / "m.bundle")},
            "report": {"enabled": False},
        }
    )
    for _ in range(2):  # the second run takes every step from the store, and says it again
        outcome = deploykit.run(recipe)
        assert "the head of BertForSequenceClassification is left out" in outcome.notes[0]
    manifest = json.loads((tmp_path / "m.bundle" / "manifest.json").read_text())
    assert manifest["card"]["provenance"]["notes"][0] == outcome.notes[0]
