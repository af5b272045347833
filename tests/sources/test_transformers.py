"""Plain transformers folders: modality, pooling and refusals come from the files and the model's behaviour."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from deploykit.errors import RemoteCodeError, SourceError  # noqa: E402
from deploykit.sources import Options, open_source  # noqa: E402
from tests import tiny  # noqa: E402

SHAPES = {
    "bert": ("text", 24, "mean"),
    "vit": ("image", 36, "pooler"),
    "resnet": ("image", 34, "pooler"),
    "wav2vec2": ("audio", 28, "mean"),
    "whisper": ("audio", 24, "mean"),
}


def save(model, folder):
    """Save a model class with a tokenizer beside it."""
    model.eval().save_pretrained(folder)
    return tiny.wordpiece(folder)


def inputs(source, batch, size=0, seed=0):
    """Inputs at the ``size``-th of the sizes of each axis."""
    return source.make_inputs(batch, {axis: sizes[size] for axis, sizes in source.sizes.items()}, seed)


@pytest.mark.parametrize("name", SHAPES)
def test_every_modality_opens_and_runs(models, name):
    source = open_source(str(models(name)), Options(max_length=4000) if name == "wav2vec2" else None)
    modality, dim, pooling = SHAPES[name]
    assert (source.card.modality, source.card.embedding.dim, source.card.embedding.pooling) == (modality, dim, pooling)
    for batch in (1, 2, 5):
        for size in (0, -1):
            tensors = inputs(source, batch, size)
            assert set(tensors) == {spec.name for spec in source.card.inputs}
            vectors = source.module(**tensors)
            assert vectors.shape == (batch, dim)
            assert vectors.dtype == torch.float32
            assert torch.isfinite(vectors).all()


def test_spectrograms_of_a_proof_are_such_as_the_feature_extractor_makes(models):
    """Whisper's: the loudest value less 2 at the least, so no range of values is wider."""
    source = open_source(str(models("whisper")))
    made = inputs(source, 5)["input_features"]
    assert made.shape == (5, *source.card.inputs[0].shape[1:])
    assert float((made.amax(dim=(1, 2)) - made.amin(dim=(1, 2))).max()) <= 2 + 1e-5
    assert torch.equal(made, inputs(source, 5)["input_features"])
    assert not torch.equal(made, inputs(source, 5, seed=1)["input_features"])
    assert len(torch.unique(made.flatten(1), dim=0)) == 5


def test_a_tower_that_was_saved_by_itself_opens_by_its_own_class(tmp_path):
    config = transformers.BlipVisionConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3, image_size=32, patch_size=8
    )
    transformers.BlipVisionModel(config).eval().save_pretrained(tmp_path)
    processor = {"image_processor_type": "BlipImageProcessor", "size": {"height": 32, "width": 32}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    source = open_source(str(tmp_path))
    assert (source.card.provenance["architecture"], source.card.embedding.dim) == ("BlipVisionModel", 24)
    assert source.module(**inputs(source, 2)).shape == (2, 24)


def test_the_input_that_a_model_takes_counts_before_the_one_that_its_class_inherited(tmp_path):
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3}
    config = transformers.Idefics3VisionConfig(**sizes, image_size=32, patch_size=8)
    model = transformers.Idefics3VisionTransformer(config)
    assert model.main_input_name == "input_ids"
    model.eval().save_pretrained(tmp_path)
    processor = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    source = open_source(str(tmp_path))
    assert source.card.modality == "image"
    assert source.module(**inputs(source, 2)).shape == (2, 24)


def test_pictures_to_prove_with_hold_nothing_that_preprocessing_cannot_make(models):
    source = open_source(str(models("vit")))
    made = source.card.preprocess
    channels = list(zip(made["mean"], made["std"], strict=True))
    ends = [(byte * made["rescale"] - made["offset"] - mean) / std for byte in (0, 255) for mean, std in channels]
    values = torch.cat([source.make_inputs(5, {}, seed)["pixel_values"].flatten() for seed in range(3)])
    assert min(ends) <= values.min() < 0 < values.max() <= max(ends)


@pytest.mark.parametrize("name", ["bert", "wav2vec2"])
def test_padding_changes_no_vector(models, name):
    source = open_source(str(models(name)), Options(max_length=4000) if name == "wav2vec2" else None)
    tensors = inputs(source, 5, -1, seed=3)
    together = source.module(**tensors)
    for row in range(5):
        count = int(tensors["attention_mask"][row].sum())
        alone = source.module(**{key: value[row : row + 1, :count] for key, value in tensors.items()})
        torch.testing.assert_close(together[row : row + 1], alone, atol=2e-5, rtol=1e-4)


def test_inputs_are_legal_texts_of_different_lengths(models):
    source = open_source(str(models("bert")))
    tensors = source.make_inputs(5, {"length": 16}, 0)
    ids, mask = tensors["input_ids"], tensors["attention_mask"]
    counts = mask.sum(dim=1).tolist()
    assert counts[0] == 16
    assert len(set(counts)) == 5
    assert (ids[:, 0] == tiny.SPECIAL.index("[CLS]")).all()
    for row, count in zip(ids.tolist(), counts, strict=True):
        assert row[count - 1] == tiny.SPECIAL.index("[SEP]")
        assert not set(row[1 : count - 1]) & set(range(len(tiny.SPECIAL)))
        assert set(row[count:]) <= {0}


def test_lengths_cover_the_head_size_and_the_maximum(models):
    assert open_source(str(models("bert"))).sizes == {"length": (1, 2, 7, 8, 16, 32, 64)}


def test_text_pooling_is_the_mean_and_says_why(models):
    source = open_source(str(models("bert")))
    tensors = inputs(source, 2)
    hidden = transformers.AutoModel.from_pretrained(models("bert"))(**tensors).last_hidden_state
    mask = tensors["attention_mask"].unsqueeze(-1)
    torch.testing.assert_close(source.module(**tensors), (hidden * mask).sum(1) / mask.sum(1))
    assert "names no pooling" in source.card.provenance["pooling"]


def test_a_vit_without_pooler_weights_takes_the_cls_token(tmp_path, models):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(models("vit"), tmp_path / "vit")
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "pooler" not in k}, folder / "model.safetensors", {"format": "pt"})
    source = open_source(str(folder))
    assert source.card.embedding.pooling == "cls"
    assert "pooler's weights are missing" in source.card.provenance["pooling"]
    tensors = inputs(source, 2)
    hidden = transformers.AutoModel.from_pretrained(folder)(**tensors).last_hidden_state
    torch.testing.assert_close(source.module(**tensors), hidden[:, 0])
    with pytest.raises(SourceError, match="pooler"):
        open_source(str(folder), Options(pooling="pooler"))


def test_feature_maps_are_averaged_when_asked(models):
    source = open_source(str(models("resnet")), Options(pooling="mean", normalize=True))
    tensors = inputs(source, 2)
    hidden = transformers.AutoModel.from_pretrained(models("resnet"))(**tensors).last_hidden_state
    want = torch.nn.functional.normalize(hidden.mean(dim=(2, 3)), dim=-1)
    torch.testing.assert_close(source.module(**tensors), want)


def test_audio_without_a_mask_has_full_rows(tmp_path):
    folder = tiny.tiny_wav2vec2(tmp_path / "base", masked=False)
    source = open_source(str(folder), Options(max_length=2000))
    assert [spec.name for spec in source.card.inputs] == ["input_values"]
    assert source.card.limits.axes["samples"][1] == 2000


def test_shortest_waveform_is_the_receptive_field(models):
    source = open_source(str(models("wav2vec2")), Options(max_length=2000))
    shortest = source.card.limits.axes["samples"][0]
    lengths = transformers.AutoModel.from_pretrained(models("wav2vec2"))._get_feat_extract_output_lengths
    assert (int(lengths(shortest - 1)), int(lengths(shortest))) == (0, 1)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    config = transformers.GPT2Config(n_embd=24, n_layer=2, n_head=3, n_positions=40, vocab_size=113)
    return save(transformers.GPT2Model(config), tmp_path_factory.mktemp("gpt2") / "gpt2")


def test_a_decoder_is_refused_by_its_behaviour(gpt2):
    with pytest.raises(SourceError, match="GPT2Model") as caught:
        open_source(str(gpt2))
    assert "last" in caught.value.hint


def test_a_decoder_that_pools_by_itself_is_taken_at_its_word(tmp_path):
    """CLIP's text model by itself: its embedding is the vector at the last token, and it has a name for that."""
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3}
    config = transformers.CLIPTextConfig(**sizes, vocab_size=113, max_position_embeddings=20, eos_token_id=3)
    model = transformers.CLIPTextModel(config)
    save(model, tmp_path)
    source = open_source(str(tmp_path))
    tensors = inputs(source, 3, -1)
    torch.testing.assert_close(source.module(**tensors), model(**tensors).pooler_output)
    assert source.card.embedding.pooling == "pooler"
    assert "decoder that pools by itself" in source.card.provenance["pooling"]


def test_a_decoder_that_pools_its_first_token_is_refused(tmp_path):
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3}
    save(transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=113, is_decoder=True)), tmp_path)
    with pytest.raises(SourceError, match="is a decoder"):
        open_source(str(tmp_path))


def test_a_decoder_is_an_embedder_when_last_pooling_is_asked_for(gpt2):
    source = open_source(str(gpt2), Options(pooling="last"))
    tensors = inputs(source, 3, -1)
    together = source.module(**tensors)
    count = int(tensors["attention_mask"][2].sum())
    alone = source.module(**{key: value[2:, :count] for key, value in tensors.items()})
    torch.testing.assert_close(together[2:], alone, atol=1e-5, rtol=1e-4)


def test_a_generative_architecture_is_refused_before_its_weights_are_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(SourceError, match="LlamaForCausalLM"):
        open_source(str(tmp_path))


def test_the_encoder_half_of_a_sequence_to_sequence_model(tmp_path):
    config = transformers.T5Config(
        vocab_size=113, d_model=24, d_kv=8, d_ff=40, num_layers=2, num_heads=3, decoder_start_token_id=0
    )
    source = open_source(str(save(transformers.T5ForConditionalGeneration(config), tmp_path / "t5")))
    assert source.card.embedding.dim == 24
    assert source.card.provenance["notes"] == ["the encoder half of T5Model"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip") / "clip"
    text = {"vocab_size": 113, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 3, "max_position_embeddings": 20, "eos_token_id": 3}
    vision = {"hidden_size": 36, "intermediate_size": 44, "num_hidden_layers": 2, "num_attention_heads": 3}
    vision |= {"image_size": 30, "patch_size": 6}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=14)
    save(transformers.CLIPModel(config), folder)
    processor = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 30}, "crop_size": 30}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def test_a_dual_encoder_asks_for_a_tower(clip):
    with pytest.raises(SourceError, match="CLIPModel") as caught:
        open_source(str(clip))
    assert "tower = 'text'" in caught.value.hint
    assert "tower = 'vision'" in caught.value.hint


@pytest.mark.parametrize("tower", ["text", "vision"])
def test_towers_share_one_space(clip, tower):
    source = open_source(str(clip), Options(tower=tower))
    assert source.card.modality == {"text": "text", "vision": "image"}[tower]
    assert source.module(**inputs(source, 2, -1)).shape == (2, 14)


def test_missing_encoder_weights_are_named(tmp_path, models):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(models("bert"), tmp_path / "bert")
    weights = load_file(folder / "model.safetensors")
    lost = "encoder.layer.1.attention.self.value.weight"
    save_file({k: v for k, v in weights.items() if k != lost}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match=lost.replace(".", r"\.")):
        open_source(str(folder))


def test_missing_weights_that_do_not_matter_are_a_note(tmp_path, models):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(models("bert"), tmp_path / "bert")
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "pooler" not in k}, folder / "model.safetensors", {"format": "pt"})
    assert "pooler.dense.bias" in open_source(str(folder)).card.provenance["notes"][0]


def test_an_unknown_architecture_names_the_installed_version(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "warpformer", "architectures": ["WarpModel"]}))
    with pytest.raises(SourceError, match="warpformer") as caught:
        open_source(str(tmp_path))
    assert transformers.__version__ in caught.value.message


def test_a_model_with_code_of_its_own_is_refused(tmp_path):
    config = {"model_type": "warpformer", "auto_map": {"AutoModel": "modeling.WarpModel"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RemoteCodeError, match="AutoModel") as caught:
        open_source(str(tmp_path))
    assert "trust_remote_code" in caught.value.hint


def test_weights_of_another_size_are_refused(tmp_path, models):
    folder = shutil.copytree(models("bert"), tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    with pytest.raises(SourceError, match="bert"):
        open_source(str(folder))


def test_pickled_weights_load_as_tensors_alone(tmp_path, models):
    from safetensors.torch import load_file

    folder = shutil.copytree(models("bert"), tmp_path / "bert")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    want = open_source(str(models("bert")))
    tensors = inputs(want, 2)
    torch.testing.assert_close(open_source(str(folder)).module(**tensors), want.module(**tensors))


class Harmful:
    """Unpickling it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_pickled_code_is_never_run(tmp_path, models):
    folder = shutil.copytree(models("bert"), tmp_path / "bert")
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Harmful(tmp_path / "harm")}, folder / "pytorch_model.bin")
    with pytest.raises(SourceError):
        open_source(str(folder))
    assert not (tmp_path / "harm").exists()


def test_too_long_a_maximum_is_refused(models):
    with pytest.raises(SourceError, match="65") as caught:
        open_source(str(models("bert")), Options(max_length=65))
    assert "64 positions" in caught.value.hint


def test_a_tokenizer_of_another_model_is_refused(tmp_path, models):
    folder = shutil.copytree(models("bert"), tmp_path / "bert")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=40
    )
    transformers.BertModel(config).save_pretrained(folder)
    with pytest.raises(SourceError, match="50"):
        open_source(str(folder))


STRANGE = ["", " ", "the cat", "Ünïcödé 漢字 😀 naïve", "a\tb\nc\x00d", "x" * 3000, "big " * 500, "[MASK] [PAD]"]


def test_the_bundle_s_tokenizer_gives_the_same_ids(minilm):
    from tokenizers import Tokenizer

    source = open_source(str(minilm), Options(kind="transformers"))
    mine = Tokenizer.from_file(str(source.files["preprocess/tokenizer.json"]))
    mine.enable_truncation(source.card.preprocess["max_length"])
    theirs = transformers.AutoTokenizer.from_pretrained(minilm)
    want = theirs(STRANGE, truncation=True, max_length=source.card.preprocess["max_length"])["input_ids"]
    assert [encoding.ids for encoding in mine.encode_batch(STRANGE)] == want


def test_a_tokenizer_is_made_from_a_vocabulary_file(tmp_path, minilm):
    from tokenizers import Tokenizer

    folder = tiny.tiny_bert(tmp_path / "bert", vocab_size=30522)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    shutil.copy(minilm / "vocab.txt", folder / "vocab.txt")
    source = open_source(str(folder))
    mine = Tokenizer.from_file(str(source.files["preprocess/tokenizer.json"]))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert [encoding.ids for encoding in mine.encode_batch(STRANGE)] == theirs(STRANGE)["input_ids"]


def test_roberta_positions_start_behind_the_padding_id(tmp_path):
    config = transformers.RobertaConfig(
        vocab_size=113,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=34,
        pad_token_id=0,
    )
    source = open_source(str(save(transformers.RobertaModel(config), tmp_path / "roberta")))
    assert max(source.sizes["length"]) == 33
    assert np.isfinite(source.module(**inputs(source, 2, -1)).numpy()).all()


def test_no_pooling_at_all_is_refused(models):
    with pytest.raises(SourceError, match="cannot be none"):
        open_source(str(models("bert")), Options(pooling="none"))


def test_an_absent_pooler_is_refused(models):
    with pytest.raises(SourceError, match="no pooled output"):
        open_source(str(models("wav2vec2")), Options(pooling="pooler", max_length=2000))


def test_a_model_that_sees_padding_says_so(tmp_path):
    config = transformers.FNetConfig(vocab_size=113, hidden_size=24, num_hidden_layers=2, intermediate_size=40)
    folder = save(transformers.FNetModel(config), tmp_path / "fnet")
    assert "padding changes its vectors" in open_source(str(folder)).card.provenance["notes"][0]


def test_a_model_that_cannot_run_on_its_own_inputs_is_explained(tmp_path, models):
    folder = shutil.copytree(models("bert"), tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "no_such_activation"}))
    with pytest.raises(SourceError, match="no_such_activation"):
        open_source(str(folder))


def test_a_folder_without_a_vocabulary_is_refused(tmp_path):
    folder = tiny.tiny_bert(tmp_path)
    for path in [*folder.glob("tokenizer*"), *folder.glob("vocab*"), *folder.glob("special_tokens*")]:
        path.unlink()
    with pytest.raises(SourceError, match="has no tokenizer: there is no file with a vocabulary"):
        open_source(str(folder))
