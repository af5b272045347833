"""Every setting of a sentence-transformers folder runs as it does there, or is refused by its name."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from deploykit.errors import SourceError  # noqa: E402
from deploykit.sources import Options, open_source  # noqa: E402
from tests import tiny  # noqa: E402
from tests.sources.test_sentence_transformers import encode, reference, worst_cosine  # noqa: E402

MEAN = {"pooling_mode": "mean"}
TEXTS = [*tiny.TEXTS, "the Cat  sat ", "river " * 30 + "dog", "a"]
TEMPLATE = (
    "{% for message in messages %}[CLS]{{ message['role'] }} a {{ message['content'] | trim }} big [SEP]{% endfor %}"
    "{% if add_generation_prompt %}red house{% endif %}"
)
MESSAGE = {"method": "forward", "method_output_name": "last_hidden_state", "format": "flat"}
FORWARD = {"method": "forward", "method_output_name": "last_hidden_state"}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def folder_with(root, settings, pooling=MEAN, name="sentence_bert_config.json", extra=(), **config):
    """A folder whose sentence_bert_config.json holds ``settings``."""
    folder = tiny.tiny_sentence_transformer(root / "model", pooling, extra, **config)
    (folder / "sentence_bert_config.json").unlink()
    write(folder / name, settings)
    return folder


def assert_as_there(folder, root, options=None, texts=TEXTS, kind=None, **settings):
    """Texts together and alone give the original's vectors: direction and length."""
    source = open_source(str(folder), options or Options())
    ours, theirs = encode(source, texts, root, kind=kind), reference(folder, texts, **settings)
    assert worst_cosine(ours, theirs) >= 0.999999
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), np.linalg.norm(theirs, axis=1), rtol=1e-4)
    return source


SETTINGS = {
    "max-length": {"max_seq_length": 16},
    "no-max-length": {"max_seq_length": None},
    "length-of-the-tokenizer": {"max_seq_length": 20, "tokenizer_args": {"model_max_length": 9}},
    "length-of-each-call": {"max_seq_length": 20, "processing_kwargs": {"text": {"max_length": 11}}},
    "common-beats-text": {"processing_kwargs": {"text": {"max_length": 11}, "common": {"max_length": 13}}},
    "truncation-side": {"max_seq_length": 9, "processor_kwargs": {"truncation_side": "left"}},
    "no-special-tokens": {"max_seq_length": 16, "processing_kwargs": {"text": {"add_special_tokens": False}}},
    "padded-to-the-longest": {"max_seq_length": 40, "processing_kwargs": {"text": {"padding": "max_length"}}},
    "config-args": {"max_seq_length": 32, "config_args": {"num_hidden_layers": 1}},
    "config-kwargs": {"max_seq_length": 32, "config_kwargs": {"hidden_act": "relu"}},
    "model-args": {"max_seq_length": 32, "model_args": {"attn_implementation": "eager", "add_pooling_layer": False}},
    "other-layer": {
        "max_seq_length": 32,
        "modality_config": {"text": {"method": "forward", "method_output_name": ["hidden_states", 1]}},
        "module_output_name": "token_embeddings",
    },
    "chat-template": {
        "max_seq_length": 24,
        "modality_config": {"text": FORWARD, "message": MESSAGE},
        "module_output_name": "token_embeddings",
        "processing_kwargs": {"chat_template": {"add_generation_prompt": True}},
    },
    "chat-template-of-its-own-length": {
        "max_seq_length": 24,
        "modality_config": {"text": FORWARD, "message": MESSAGE},
        "module_output_name": "token_embeddings",
        "processing_kwargs": {
            "common": {"max_length": 17},
            "text": {"max_length": 15},
            "chat_template": {"max_length": 13},
        },
    },
    "chat-template-cut-at-its-beginning": {
        "max_seq_length": 12,
        "modality_config": {"text": FORWARD, "message": {**MESSAGE, "format": "auto"}},
        "module_output_name": "token_embeddings",
        "processor_kwargs": {"truncation_side": "left"},
        "processing_kwargs": {"chat_template": {"restore_suffix": False}},
    },
    "nothing-else": {"max_seq_length": 32, "unpad_inputs": False, "query_length": None, "query_expansion": None},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_setting_of_the_transformer_runs_as_there(tmp_path, settings):
    folder = folder_with(tmp_path, settings)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    assert_as_there(folder, tmp_path)


@pytest.mark.parametrize(("pooling", "prompt"), [("mean", "query"), ("lasttoken", "passage"), ("cls", None)])
def test_a_chat_template_carries_the_prompts(tmp_path, pooling, prompt):
    folder = folder_with(
        tmp_path,
        SETTINGS["chat-template"],
        {"pooling_mode": pooling},
        prompts={"query": "the big river", "passage": ""},
    )
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    assert_as_there(folder, tmp_path, kind=prompt, prompt_name=prompt)


@pytest.mark.parametrize("name", ["roberta", "xlm-roberta", "distilbert"])
def test_settings_stand_under_older_names_too(tmp_path, name):
    assert_as_there(folder_with(tmp_path, {"max_seq_length": 9}, name=f"sentence_{name}_config.json"), tmp_path)


def test_an_empty_file_of_settings_gives_way_to_the_next(tmp_path):
    folder = folder_with(tmp_path, {"max_seq_length": 9}, name="sentence_roberta_config.json")
    write(folder / "sentence_bert_config.json", {})
    assert_as_there(folder, tmp_path)


def test_lower_casing_matches(tmp_path):
    folder = folder_with(tmp_path, {"max_seq_length": 32, "do_lower_case": True})
    data = json.loads((folder / "tokenizer.json").read_text())
    data["normalizer"]["lowercase"] = False
    write(folder / "tokenizer.json", data)
    assert_as_there(folder, tmp_path)


def test_the_models_own_pooled_output_needs_no_pooling_module(tmp_path):
    pooled = {"text": {"method": "forward", "method_output_name": "pooler_output"}}
    folder = folder_with(tmp_path, {"modality_config": pooled, "module_output_name": "sentence_embedding"})
    write(folder / "modules.json", json.loads((folder / "modules.json").read_text())[:1])
    assert_as_there(folder, tmp_path)


REFUSED = {
    "message_format": {"message_format": "flat"},
    "tokenizer_kwargs": {"tokenizer_kwargs": {"model_max_length": 9}},
    "query_expansion": {"query_expansion": {"strategy": "fixed", "length": 32}},
    "query_length": {"query_length": 8},
    "tokenizer_name_or_path": {"tokenizer_name_or_path": "somewhere/else"},
    "fill-mask": {"transformer_task": "fill-mask"},
    "sequence-classification": {"transformer_task": "sequence-classification"},
    "return_attention_mask": {"processing_kwargs": {"text": {"return_attention_mask": False}}},
    "sound": {"processing_kwargs": {"sound": {"a": 1}}},
    "quantization_config": {"model_args": {"quantization_config": {"load_in_8bit": True}}},
    "save_pretrained": {
        "modality_config": {"text": {"method": "save_pretrained", "method_output_name": None}},
        "module_output_name": "token_embeddings",
    },
    "scores": {"modality_config": {"text": FORWARD}, "module_output_name": "scores"},
    "module_output_name": {"modality_config": {"text": FORWARD}},
    "layer": {"modality_config": {"text": FORWARD | {"layer": 3}}, "module_output_name": "token_embeddings"},
    "max_seq_length": {"max_seq_length": "long"},
    "encodes message": {"modality_config": {"message": MESSAGE}, "module_output_name": "token_embeddings"},
}


@pytest.mark.parametrize("word", REFUSED)
def test_a_setting_that_cannot_be_honoured_is_refused_by_its_name(tmp_path, word):
    settings = REFUSED[word]
    with pytest.raises(SourceError, match=word):
        open_source(str(folder_with(tmp_path, settings)))


def test_a_template_that_tells_the_date_is_refused(tmp_path):
    folder = folder_with(tmp_path, SETTINGS["chat-template"])
    (folder / "chat_template.jinja").write_text("{{ strftime_now('%d') }}" + TEMPLATE)
    with pytest.raises(SourceError, match="date"):
        open_source(str(folder))


def test_a_template_that_alters_texts_is_refused(tmp_path):
    folder = folder_with(tmp_path, SETTINGS["chat-template"])
    (folder / "chat_template.jinja").write_text(TEMPLATE.replace("trim", "upper"))
    with pytest.raises(SourceError, match="chat template"):
        open_source(str(folder))


def test_truncated_vectors_have_the_length_that_they_have_there(tmp_path):
    folder = folder_with(tmp_path, {"max_seq_length": 32}, extra=(("Normalize", {}),), truncate_dim=9)
    source = assert_as_there(folder, tmp_path)
    assert (source.card.embedding.dim, source.card.embedding.normalized) == (9, False)


def test_a_truncation_beyond_the_dimensions_keeps_them_all(tmp_path):
    folder = folder_with(tmp_path, {"max_seq_length": 32}, truncate_dim=99)
    assert assert_as_there(folder, tmp_path).card.embedding.dim == 24


def test_a_prompt_of_null_is_empty_and_query_and_document_are_always_there(tmp_path):
    settings = {"prompts": {"query": None}, "default_prompt_name": "document"}
    assert_as_there(folder_with(tmp_path, {"max_seq_length": 32}, **settings), tmp_path)


def test_whitespace_of_a_prompt_is_kept(tmp_path):
    settings = {"prompts": {"query": " the\tcat:  "}, "default_prompt_name": "query"}
    assert_as_there(folder_with(tmp_path, {"max_seq_length": 32}, **settings), tmp_path)


def test_the_similarity_is_a_fact_of_the_bundle(tmp_path):
    folder = folder_with(tmp_path, {"max_seq_length": 32}, similarity_fn_name="dot")
    assert open_source(str(folder)).card.provenance["similarity"] == "dot"


@pytest.mark.parametrize("kind", ["SparseEncoder", "CrossEncoder", "MultiVectorEncoder", "ColBERT"])
def test_another_kind_of_model_is_refused_by_its_name(tmp_path, kind):
    with pytest.raises(SourceError, match=kind):
        open_source(str(folder_with(tmp_path, {}, model_type=kind)))


def test_an_unknown_key_of_the_folder_is_refused_by_its_name(tmp_path):
    with pytest.raises(SourceError, match="score_offset"):
        open_source(str(folder_with(tmp_path, {}, score_offset=1)))
