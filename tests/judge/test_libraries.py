"""The real libraries beside tiny exports: they agree, and a misreading is named where it begins."""

from __future__ import annotations

import numpy as np
import pytest

from deploykit.errors import ProofError
from deploykit.runtime.preprocess import image
from tests import tiny
from tests.judge.conftest import PROMPTS

CLOSE = 0.999999


def test_a_sentence_transformers_folder_is_judged_with_its_prompts(exported):
    found = exported("sentence").judge()
    assert found["judged"]
    assert found["library"] == "sentence-transformers"
    assert found["call"] == "SentenceTransformer(folder).encode(text)"
    assert found["compared"] == found["inputs"] >= 24
    assert found["cosine_min"] > CLOSE
    assert found["scale_max"] < 1e-5
    assert not found["overridden"]
    assert not found["left_out"]


@pytest.mark.parametrize("name", ["vit", "whisper"])
def test_files_are_judged_by_path(exported, name):
    found = exported(name).judge()
    assert found["judged"]
    assert found["library"] == "transformers"
    assert found["compared"] >= 24
    assert found["cosine_min"] > CLOSE


def test_what_was_asked_for_is_asked_of_the_library_too(exported):
    made = exported("bert", pooling="weighted_mean", normalize=True, dim=7, max_length=9, prompts=PROMPTS)
    found = made.judge()
    assert found["cosine_min"] > CLOSE
    assert found["overridden"] == ["max_length 9", "prompts", "dim 7", "normalize True"]
    assert found["compared"] > len(PROMPTS) + 24


def test_a_width_that_was_asked_for_is_asked_of_the_library_too(tmp_path):
    from deploykit.judge import Choices, Raw, open_library

    tiny.tiny_bert(tmp_path / "m")
    library = open_library("transformers", str(tmp_path / "m"), Choices("text", "mean", longest=12, fixed_length=12))
    ids = library.tensors(Raw("t", "the cat"))["input_ids"]
    assert ids.shape == (1, 12)
    assert library.overridden == ("fixed_length 12",)
    assert library.encode(Raw("t", "the cat")).shape == (24,)


def test_a_tower_that_was_saved_by_itself_keeps_its_projection(tmp_path):
    import torch
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    from deploykit.judge import Choices, Raw, open_library

    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 40}
    ends = {"eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0}
    model = CLIPTextModelWithProjection(CLIPTextConfig(vocab_size=113, projection_dim=10, **sizes, **ends)).eval()
    model.save_pretrained(tmp_path)
    tiny.wordpiece(tmp_path)
    library = open_library("transformers", str(tmp_path), Choices("text", "pooler", longest=64))
    raw = Raw("t", "the cat")
    tensors = {
        name: torch.from_numpy(found) for name, found in library.tensors(raw).items() if name != "token_type_ids"
    }
    with torch.inference_mode():
        want = model(**tensors).text_embeds[0].numpy()
    np.testing.assert_allclose(library.encode(raw), want, atol=1e-6)


def test_sentence_transformers_is_asked_by_its_own_means(exported):
    made = exported("sentence", pooling="cls", normalize=False, dim=7, max_length=9, prompts={"passage": "a dog "})
    found = made.judge()
    assert found["cosine_min"] > CLOSE
    assert found["call"] == "SentenceTransformer(folder).encode(text, truncate_dim=7)"
    assert found["overridden"] == ["pooling cls", "no normalize", "prompts", "max_length 9", "dim 7"]


def refused(made, library=None, **asked):
    with pytest.raises(ProofError) as caught:
        made.judge(library, **asked)
    assert "disagrees with" in caught.value.message
    return caught.value.message


def test_another_pooling_is_seen_at_the_pooling(exported, other_folder):
    made = exported("sentence")
    change = {"pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}
    other = other_folder(made.model, "1_Pooling/config.json", lambda data: data | change)
    assert "It begins at the pooling or the head behind it" in refused(made, other)


def test_a_lost_normalization_is_seen_at_the_scale(exported, other_folder):
    made = exported("sentence")
    other = other_folder(made.model, "modules.json", lambda data: data[:-1])
    assert "It begins at the scale of the vector" in refused(made, other)


def test_a_prompt_that_was_lost_or_misread_is_seen(exported, other_folder):
    made, name = exported("sentence"), "config_sentence_transformers.json"
    other = other_folder(made.model, name, lambda data: data | {"prompts": {"query": "a dog on "}})
    message = refused(made, other)
    assert "with the prompt 'query'" in message
    assert "It begins at tokens" in message


def test_a_prompt_that_we_lack_is_named(exported, other_folder):
    made, name = exported("sentence"), "config_sentence_transformers.json"
    other = other_folder(made.model, name, lambda data: data | {"prompts": PROMPTS | {"passage": "p: "}})
    with pytest.raises(ProofError, match="has the prompt 'passage' for this folder"):
        made.judge(other)


def test_another_limit_is_seen_at_the_tokens(exported, tmp_path):
    made = exported("sentence").with_card(tmp_path / "e", lambda card: card["preprocess"].update(max_length=8))
    message = refused(made)
    assert "It begins at tokens: 8 of them, expected" in message


def test_other_weights_are_seen_at_the_hidden_states(exported, other_folder):
    made = exported("sentence")
    other = other_folder(made.model, "config.json", lambda data: data | {"hidden_act": "relu"})
    assert "It begins at the hidden states: cosine 0." in refused(made, other)


def test_another_mean_is_seen_at_the_preprocessing(exported, tmp_path):
    made = exported("vit").with_card(tmp_path / "e", lambda card: card["preprocess"].update(mean=[0.1, 0.4, 0.6]))
    message = refused(made)
    assert "It begins at preprocessing: 'pixel_values' differs by" in message


def test_a_picture_that_is_read_otherwise_is_seen_at_the_decoding(exported, monkeypatch):
    load = image.load

    def mirrored(picture, where, options):
        pixels = load(picture, where, options)
        return pixels if hasattr(picture, "shape") else pixels[:, ::-1]

    monkeypatch.setattr(image, "load", mirrored)
    assert "It begins at decoding: the library reads uint8 [" in refused(exported("vit"))


def test_another_sampling_rate_is_seen_at_the_preprocessing(exported, other_folder):
    made = exported("whisper")
    other = other_folder(made.model, "preprocessor_config.json", lambda data: data | {"n_fft": 320})
    assert "It begins at preprocessing: 'input_features'" in refused(made, other)


def test_a_folder_that_the_library_cannot_load_is_not_judged(exported, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    found = exported("vit").judge(tmp_path)
    assert not found["judged"]
    assert found["reason"].startswith("transformers cannot load it: ValueError")
    assert found["notes"] == [f"not judged: {found['reason']}"]
