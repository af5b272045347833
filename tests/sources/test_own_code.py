"""Folders that bring Python code of their own (``auto_map``): it runs, or the folder is refused."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from deploykit.errors import RemoteCodeError, SourceError  # noqa: E402
from deploykit.sources import Options, open_source  # noqa: E402
from tests import tiny  # noqa: E402
from tests.sources.as_given import bundle_vectors, cosines, library_vectors  # noqa: E402

BIDIRECTIONAL = """
from transformers import Qwen2Model


class OwnModel(Qwen2Model):
    def __init__(self, config):
        super().__init__(config)
        for layer in self.layers:
            layer.self_attn.is_causal = False

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        mask = attention_mask[:, None, None, :].bool().expand(-1, 1, input_ids.shape[1], -1)
        allowed = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
        return super().forward(input_ids=input_ids, attention_mask={"full_attention": allowed}, **kwargs)
"""
TOKENIZER = """
from transformers import PreTrainedTokenizerFast


class OwnTokenizer(PreTrainedTokenizerFast):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        from tokenizers import normalizers
        self._tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace("cat", "dog")])
"""


def name_code(folder, file, **auto_map):
    """Write ``auto_map`` into one of the folder's JSON files."""
    path = folder / file
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(found | {"auto_map": auto_map}))


@pytest.fixture
def qwen(tmp_path):
    """A Qwen2 that its own code makes bidirectional."""
    sizes = {"vocab_size": 113, "hidden_size": 24, "num_hidden_layers": 2, "intermediate_size": 40}
    heads = {"num_attention_heads": 3, "num_key_value_heads": 3}
    config = transformers.Qwen2Config(**sizes, **heads, initializer_range=0.3, max_position_embeddings=64)
    torch.manual_seed(0)
    transformers.Qwen2Model(config).eval().save_pretrained(tmp_path)
    (tmp_path / "modeling_own.py").write_text("import torch\n" + BIDIRECTIONAL)
    name_code(tmp_path, "config.json", AutoModel="modeling_own.OwnModel")
    return tiny.wordpiece(tmp_path)


@pytest.mark.parametrize("pooling", ["last", None])
def test_code_beside_a_model_type_that_transformers_knows_is_not_passed_over(qwen, pooling):
    with pytest.raises(RemoteCodeError, match=r"OwnModel \(modeling_own\.py\)") as caught:
        open_source(str(qwen), Options(pooling=pooling))
    assert "--trust-remote-code" in caught.value.hint
    assert "Qwen2Model" in caught.value.hint


def test_code_that_is_allowed_gives_the_vectors(qwen):
    source = open_source(str(qwen), Options(pooling="mean", trust_remote_code=True))
    want = library_vectors(qwen, trust_remote_code=True)
    assert cosines(bundle_vectors(source), want).min() > 0.99999
    assert cosines(want, library_vectors(qwen)).min() < 0.9
    assert "OwnModel (modeling_own.py)" in source.card.provenance["notes"][0]


def test_without_auto_map_the_class_of_transformers_is_what_was_asked_for(qwen):
    settings = json.loads((qwen / "config.json").read_text())
    del settings["auto_map"]
    (qwen / "config.json").write_text(json.dumps(settings))
    source = open_source(str(qwen), Options(pooling="last"))
    assert source.card.provenance["architecture"] == "Qwen2Model"


def test_code_of_another_repository_is_named(qwen):
    name_code(qwen, "config.json", AutoModel="maker/code--modeling_own.OwnModel")
    with pytest.raises(RemoteCodeError, match=r"OwnModel \(modeling_own\.py of maker/code\)"):
        open_source(str(qwen))


def test_code_for_a_head_alone_says_which_class_runs(models, tmp_path):
    folder = tiny.tiny_bert(tmp_path / "bert")
    name_code(folder, "config.json", AutoModelForMaskedLM="modeling_own.OwnHead")
    with pytest.raises(RemoteCodeError, match="OwnHead"):
        open_source(str(folder))
    source = open_source(str(folder), Options(trust_remote_code=True))
    assert "BertModel of transformers runs the model" in source.card.provenance["notes"][0]


def test_the_transformer_of_a_sentence_transformers_folder_keeps_its_code(tmp_path):
    folder = tiny.tiny_sentence_transformer(tmp_path / "st", {"pooling_mode_mean_tokens": True})
    name_code(folder, "config.json", AutoModel="modeling_own.OwnModel")
    with pytest.raises(RemoteCodeError, match="OwnModel"):
        open_source(str(folder))


@pytest.mark.parametrize("entry", [["tokenization_own.OwnTokenizer", None], [None, "tokenization_own.OwnTokenizer"]])
def test_a_tokenizer_of_its_own_runs_or_is_refused(tmp_path, entry):
    folder = tiny.tiny_bert(tmp_path / "bert")
    (folder / "tokenization_own.py").write_text(TOKENIZER)
    name_code(folder, "tokenizer_config.json", AutoTokenizer=entry)
    with pytest.raises(RemoteCodeError, match=r"OwnTokenizer \(tokenization_own\.py\)"):
        open_source(str(folder))
    source = open_source(str(folder), Options(trust_remote_code=True))
    assert cosines(bundle_vectors(source), library_vectors(folder, trust_remote_code=True)).min() > 0.99999


CALLED = """

    def _encode_plus(self, text, *args, **kwargs):
        upper = [t.replace("dog", "cat") for t in text] if isinstance(text, list) else text.replace("dog", "cat")
        return super()._encode_plus(upper, *args, **kwargs)
"""


def test_a_tokenizer_that_does_in_python_what_its_file_does_not_is_refused(tmp_path):
    folder = tiny.tiny_bert(tmp_path / "bert")
    (folder / "tokenization_own.py").write_text(TOKENIZER + CALLED.replace("dog", "the").replace("cat", "mat"))
    name_code(folder, "tokenizer_config.json", AutoTokenizer=[None, "tokenization_own.OwnTokenizer"])
    with pytest.raises(SourceError, match="OwnTokenizer"):
        open_source(str(folder), Options(trust_remote_code=True))


@pytest.mark.parametrize("auto", ["AutoImageProcessor", "AutoProcessor"])
def test_an_image_processor_of_its_own_is_refused(tmp_path, auto):
    folder = tiny.tiny_vit(tmp_path / "vit")
    name_code(folder, "preprocessor_config.json", **{auto: "processing_own.OwnProcessor"})
    with pytest.raises(RemoteCodeError, match=r"OwnProcessor \(processing_own\.py\)") as caught:
        open_source(str(folder), Options(trust_remote_code=True))
    assert "none" in caught.value.hint
    assert open_source(str(folder), Options(preprocess="none")).card.modality == "tensor"


def test_a_feature_extractor_of_its_own_is_refused(tmp_path):
    folder = tiny.tiny_wav2vec2(tmp_path / "wav2vec2")
    name_code(folder, "preprocessor_config.json", AutoFeatureExtractor="extraction_own.OwnExtractor")
    with pytest.raises(RemoteCodeError, match="OwnExtractor"):
        open_source(str(folder))


def test_a_tokenizer_that_takes_special_tokens_for_text_is_refused(tmp_path):
    folder = tiny.tiny_bert(tmp_path)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(settings | {"split_special_tokens": True}))
    with pytest.raises(SourceError, match="gives other ids"):
        open_source(str(folder))
