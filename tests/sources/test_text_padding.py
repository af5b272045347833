"""Texts are padded as their model was trained on them, where its vectors depend on that."""

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

TEXT = {"vocab_size": 113, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
TEXT |= {"num_attention_heads": 3, "max_position_embeddings": 28, "pad_token_id": 0, "bos_token_id": 2}
TEXT |= {"eos_token_id": 3, "projection_size": 24}
VISION = {"hidden_size": 24, "intermediate_size": 44, "num_hidden_layers": 1, "num_attention_heads": 3}
VISION |= {"image_size": 30, "patch_size": 6}
NAMES = (["input_ids"], ["input_ids", "attention_mask"])


def wide(model):
    """Weights large enough that padding shows in the vectors."""
    torch.manual_seed(0)
    made = model()
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(torch.randn_like(weight) * (weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.1))
            weight.add_(1.0 if weight.ndim == 1 and weight.numel() == 24 else 0.0)
    return made.eval()


def siglip(folder, kind="Siglip", names=("input_ids",), model_max_length=28):
    config = getattr(transformers, f"{kind}Config")(text_config=TEXT, vision_config=VISION)
    wide(lambda: getattr(transformers, f"{kind}Model")(config)).save_pretrained(folder)
    return tokenized(folder, list(names), model_max_length)


def tokenized(folder, names, model_max_length=28, **changes):
    tiny.wordpiece(folder, model_max_length)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_input_names": names} | changes))
    return folder


def tower_vectors(folder, width, texts=TEXTS, features="get_text_features", kind=transformers.AutoModel):
    """The text tower's answers to rows padded as the model card and the pipeline pad them."""
    model = kind.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    feeds = tokenizer(list(texts), padding="max_length", max_length=width, truncation=True, return_tensors="pt")
    feeds = {key: feeds[key] for key in tokenizer.model_input_names if key != "token_type_ids"}
    with torch.inference_mode():
        found = getattr(model, features)(**feeds)
    return getattr(found, "pooler_output", found)


@pytest.mark.parametrize("names", NAMES, ids=["no mask", "mask"])
def test_siglip_s_texts_are_padded_to_their_last_position(tmp_path, names):
    """It pools the last place of the row, and sees the padding where its tokenizer gives no mask."""
    source = open_source(str(siglip(tmp_path, names=names)), Options(tower="text"))
    assert cosines(bundle_vectors(source), tower_vectors(tmp_path, 28)).min() > 0.99999
    assert [spec.name for spec in source.card.inputs] == names
    assert source.card.inputs[0].shape == ("batch", 28)
    assert "padded to 28 tokens" in source.card.provenance["notes"][-2]


def test_siglip_s_text_model_by_itself_pools_as_it_does(tmp_path):
    config = transformers.SiglipTextConfig(**TEXT)
    wide(lambda: transformers.SiglipTextModel(config)).save_pretrained(tmp_path)
    tokenized(tmp_path, ["input_ids"])
    source = open_source(str(tmp_path))
    want = tower_vectors(tmp_path, 28, features="forward", kind=transformers.SiglipTextModel)
    assert cosines(bundle_vectors(source), want).min() > 0.99999


def test_a_width_that_is_asked_for_is_padded_as_the_library_pads_it(tmp_path):
    source = open_source(str(siglip(tmp_path)), Options(tower="text", fixed_length=20))
    assert cosines(bundle_vectors(source), tower_vectors(tmp_path, 20)).min() > 0.99999


def test_texts_of_one_width_are_not_cut_below_it(tmp_path):
    with pytest.raises(SourceError, match="pads every text to 28 tokens") as caught:
        open_source(str(siglip(tmp_path)), Options(tower="text", max_length=20))
    assert "fixed_length" in caught.value.hint


def test_the_width_that_the_processor_s_class_names_is_taken(tmp_path):
    """Siglip2's processor pads and cuts to 64 tokens, whatever its tokenizer's maximum is."""
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "Siglip2Processor"}))
    text = TEXT | {"max_position_embeddings": 64}
    config = transformers.Siglip2Config(text_config=text, vision_config=VISION)
    wide(lambda: transformers.Siglip2Model(config)).save_pretrained(tmp_path)
    tokenized(tmp_path, ["input_ids"], 200)
    defaults = transformers.Siglip2Processor.text_kwargs
    assert (defaults["padding"], defaults["max_length"]) == ("max_length", 64)
    source = open_source(str(tmp_path), Options(tower="text"))
    assert cosines(bundle_vectors(source), tower_vectors(tmp_path, 64)).min() > 0.99999


def test_a_processor_s_padding_that_a_mask_hides_costs_nothing(tmp_path):
    """ALIGN pads to 64 tokens, and BERT does not see it: texts stay as long as they are."""
    vision = {"image_size": 32, "hidden_dim": 12, "width_coefficient": 0.1, "depth_coefficient": 0.1}
    text = {"vocab_size": 113, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3}
    text |= {"intermediate_size": 40, "max_position_embeddings": 64}
    config = transformers.AlignConfig(text_config=text, vision_config=vision, projection_dim=24)
    torch.manual_seed(0)
    transformers.AlignModel(config).eval().save_pretrained(tmp_path)
    tokenized(tmp_path, ["input_ids", "token_type_ids", "attention_mask"], 64)
    source = open_source(str(tmp_path), Options(tower="text"))
    assert source.card.inputs[0].shape == ("batch", "length")
    assert cosines(bundle_vectors(source), tower_vectors(tmp_path, 64)).min() > 0.99999


@pytest.mark.parametrize("eos", [3, 2])
def test_clip_s_texts_pool_at_their_end(tmp_path, eos):
    """At the first end token; the largest id where an old config says 2."""
    text = {**TEXT, "eos_token_id": eos}
    config = transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
    wide(lambda: transformers.CLIPModel(config)).save_pretrained(tmp_path)
    tokenized(tmp_path, ["input_ids", "attention_mask"])
    source = open_source(str(tmp_path), Options(tower="text"))
    assert source.card.inputs[0].shape == ("batch", "length")
    assert cosines(bundle_vectors(source), tower_vectors(tmp_path, 28)).min() > 0.99999


def test_a_tokenizer_that_gives_no_mask_leaves_its_model_without_one(tmp_path):
    folder = tiny.tiny_bert(tmp_path / "bert")
    tokenized(folder, ["input_ids"], 64)
    source = open_source(str(folder))
    assert [spec.name for spec in source.card.inputs] == ["input_ids"]
    assert cosines(bundle_vectors(source), library_vectors(folder)).min() > 0.99999


def test_padding_in_front_gives_the_vectors_of_the_library(tmp_path):
    folder = tiny.tiny_bert(tmp_path / "bert")
    tokenized(folder, ["input_ids", "attention_mask"], 64, padding_side="left", truncation_side="left")
    source = open_source(str(folder))
    assert cosines(bundle_vectors(source), library_vectors(folder)).min() > 0.99999
    assert source.card.preprocess["truncation_side"] == "left"


def test_a_bundle_of_one_width_without_a_mask_gives_the_vectors_of_the_library(tmp_path, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_STORE", str(tmp_path / "store"))
    folder = siglip(tmp_path / "model")
    bundle = deploykit.export(folder, output=tmp_path / "m.bundle", tower="text")
    with deploykit.load(bundle.root) as encoder:
        vectors = torch.from_numpy(encoder.encode(list(TEXTS)))
    assert cosines(vectors, tower_vectors(folder, 28)).min() > 0.9999
