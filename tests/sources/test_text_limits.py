"""How many tokens a text may have: what the model can read and what its files say, and no key of its config."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from deploykit.errors import SourceError  # noqa: E402
from deploykit.sources import Options, open_source  # noqa: E402
from tests import tiny  # noqa: E402
from tests.sources.as_given import TEXTS, bundle_vectors, cosines, library_vectors  # noqa: E402

SIZES = {"vocab_size": 113, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
SIZES |= {"intermediate_size": 40, "initializer_range": 0.3, "pad_token_id": 0}
ROTARY = {"num_key_value_heads": 3, "head_dim": 8, "bos_token_id": 2, "eos_token_id": 3, "mask_token_id": 4}
LONGROPE = {"rope_type": "longrope", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 64}
LONGROPE |= {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 4.0, 8.0]}
SCALED = {
    "dynamic": (64, {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}),
    "longrope": (256, LONGROPE),
    "linear": (64, {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}),
    "yarn": (64, {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 16}),
}


def saved(model, folder, model_max_length):
    torch.manual_seed(0)
    model().eval().save_pretrained(folder)
    return tiny.wordpiece(folder, model_max_length)


def rotary(folder, model_max_length=256, positions=64, **settings):
    config = transformers.EuroBertConfig(**SIZES, **ROTARY, max_position_embeddings=positions, **settings)
    return saved(lambda: transformers.EuroBertModel(config), folder, model_max_length)


def unbounded(folder):
    """Take the maximum out of the tokenizer's file."""
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["model_max_length"]
    path.write_text(json.dumps(settings))
    return folder


def test_rotary_positions_bound_nothing(tmp_path):
    source = open_source(str(rotary(tmp_path)))
    assert source.card.preprocess["max_length"] == 256
    assert cosines(bundle_vectors(source), library_vectors(tmp_path)).min() > 0.99999


def test_more_tokens_than_a_config_names_may_be_asked_for(tmp_path):
    source = open_source(str(rotary(tmp_path, 64)), Options(max_length=200))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.model_max_length = 200
    tokenizer.save_pretrained(tmp_path)
    assert cosines(bundle_vectors(source), library_vectors(tmp_path)).min() > 0.99999


def test_a_sentence_transformers_folder_is_read_as_far_as_it_says(tmp_path):
    st = pytest.importorskip("sentence_transformers")
    rotary(tmp_path, 64)
    modules = [{"idx": i, "name": str(i), "path": p, "type": f"sentence_transformers.models.{k}"}
               for i, (p, k) in enumerate((("", "Transformer"), ("1_Pooling", "Pooling")))]  # fmt: skip
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 24, "pooling_mode_mean_tokens": True}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    for said in ({"max_seq_length": 150}, {}):
        (tmp_path / "sentence_bert_config.json").write_text(json.dumps(said | {"do_lower_case": False}))
        want = torch.from_numpy(st.SentenceTransformer(str(tmp_path), device="cpu").encode(list(TEXTS)))
        assert cosines(bundle_vectors(open_source(str(tmp_path))), want).min() > 0.99999, said


def test_alibi_bounds_nothing(tmp_path):
    config = transformers.BloomConfig(
        vocab_size=113, hidden_size=24, n_layer=2, n_head=3, initializer_range=0.3, seq_length=32
    )
    config.max_position_embeddings = 32
    saved(lambda: transformers.BloomModel(config), tmp_path, 200)
    source = open_source(str(tmp_path), Options(pooling="last"))
    want = library_vectors(tmp_path, pool=lambda output: output.last_hidden_state[:, -1])
    assert cosines(bundle_vectors(source), want).min() > 0.99999


def test_relative_positions_that_are_clamped_bound_nothing(tmp_path):
    """T5's tokens look up their distances, of which there is a last one."""
    config = transformers.T5Config(vocab_size=113, d_model=24, d_kv=8, d_ff=40, num_layers=2, num_heads=3)
    config.max_position_embeddings = 32
    saved(lambda: transformers.T5EncoderModel(config), tmp_path, 200)
    source = open_source(str(tmp_path))
    assert source.card.preprocess["max_length"] == 200


@pytest.mark.parametrize("kind", ["Opt", "Roberta", "GPT2", "Longformer"])
def test_a_table_of_positions_is_the_bound_whatever_the_config_says(tmp_path, kind):
    """OPT's rows begin at 2, RoBERTa's behind the padding id, GPT-2 names them otherwise, Longformer fills windows."""
    config = {
        "Opt": lambda: transformers.OPTConfig(
            vocab_size=113, hidden_size=24, num_hidden_layers=1, num_attention_heads=3, ffn_dim=40,
            max_position_embeddings=38, word_embed_proj_dim=24, pad_token_id=0),
        "Roberta": lambda: transformers.RobertaConfig(**SIZES, max_position_embeddings=39),
        "Longformer": lambda: transformers.LongformerConfig(
            **SIZES, max_position_embeddings=39, attention_window=8, sep_token_id=3),
        "GPT2": lambda: transformers.GPT2Config(n_embd=24, n_layer=1, n_head=3, n_positions=38, vocab_size=113),
    }[kind]()  # fmt: skip
    saved(lambda: transformers.AutoModel.from_config(config), tmp_path, 200)
    settings = json.loads((tmp_path / "config.json").read_text())
    pooling = {} if kind in ("Roberta", "Longformer") else {"pooling": "last"}
    source = open_source(str(tmp_path), Options(**pooling))
    assert max(source.sizes["length"]) == 38
    assert np.isfinite(source.module(**source.make_inputs(2, {"length": 38}, 0)).detach()).all()
    with pytest.raises(SourceError, match="39") as caught:
        open_source(str(tmp_path), Options(max_length=39, **pooling))
    assert "38 positions" in caught.value.hint
    assert settings["model_type"] == config.model_type


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_lengths_at_which_frequencies_change_are_refused(tmp_path, kind):
    positions, rope = SCALED[kind]
    rotary(tmp_path, 256, positions, rope_parameters=rope)
    with pytest.raises(SourceError, match=f"'{kind}' frequencies depend") as caught:
        open_source(str(tmp_path))
    assert "max_length = 64" in caught.value.hint
    with pytest.raises(SourceError, match="65"):
        open_source(str(tmp_path), Options(max_length=65))
    assert open_source(str(unbounded(tmp_path))).card.preprocess["max_length"] == 64


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_texts_below_the_length_at_which_frequencies_change_are_right(tmp_path, kind):
    positions, rope = SCALED[kind]
    source = open_source(str(rotary(tmp_path, 64, positions, rope_parameters=rope)))
    assert cosines(bundle_vectors(source), library_vectors(tmp_path)).min() > 0.99999


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_frequencies_that_stay_are_read_on(tmp_path, kind):
    positions, rope = SCALED[kind]
    source = open_source(str(rotary(tmp_path, 256, positions, rope_parameters=rope)))
    assert source.card.preprocess["max_length"] == 256
    assert cosines(bundle_vectors(source), library_vectors(tmp_path)).min() > 0.99999


def test_a_maximum_that_nobody_named_is_told(tmp_path):
    source = open_source(str(unbounded(rotary(tmp_path))))
    assert source.card.preprocess["max_length"] == 64
    assert "texts are cut after 64 tokens" in source.card.provenance["notes"][0]


def truncated(folder, tokens, padding=None):
    """Write truncation, and padding, into tokenizer.json, as sentence-transformers once did."""
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    data["truncation"] = {"direction": "Right", "max_length": tokens, "strategy": "LongestFirst", "stride": 0}
    data["padding"] = padding
    path.write_text(json.dumps(data))
    return folder


def test_a_truncation_inside_the_tokenizer_is_not_what_transformers_cuts_at(tmp_path):
    folder = truncated(tiny.tiny_bert(tmp_path, max_position_embeddings=120), 16)
    text = "the cat sat on it " * 12
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = 120
    expected = tokenizer(text, truncation=True)["input_ids"]
    source = open_source(str(folder))
    assert len(expected) > 16
    assert source.card.preprocess["max_length"] == 120


def onnx_folder(folder, names=("input_ids", "attention_mask"), **config):
    """model.onnx and tokenizer.json alone."""
    import torch

    model_folder = tiny.tiny_bert(folder / "bert", max_position_embeddings=120, **config)
    model = transformers.AutoModel.from_pretrained(model_folder, attn_implementation="eager").eval()

    class Pooled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = model

        def forward(self, input_ids, attention_mask=None):
            out = self.body(input_ids=input_ids, attention_mask=attention_mask)
            return out.last_hidden_state.mean(dim=1)

    example = torch.ones(2, 12, dtype=torch.int64)
    home = folder / "onnx-model"
    home.mkdir()
    axes = {name: {0: "batch", 1: "length"} for name in names}
    torch.onnx.export(
        Pooled().eval(), tuple(example for _ in names), str(home / "model.onnx"), input_names=list(names),
        output_names=["sentence_embedding"], dynamic_axes=axes | {"sentence_embedding": {0: "batch"}}, dynamo=False,
    )  # fmt: skip
    (home / "tokenizer.json").write_text((model_folder / "tokenizer.json").read_text())
    return home


def onnx_vectors(home, texts):
    """The graph's answers to what the tokenizers library makes of each text by itself."""
    import onnxruntime
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(home / "tokenizer.json"))
    session = onnxruntime.InferenceSession(str(home / "model.onnx"), providers=["CPUExecutionProvider"])
    found = []
    for text in texts:
        made = tokenizer.encode(text)
        feeds = {"input_ids": [made.ids], "attention_mask": [made.attention_mask]}
        taken = {one.name: np.array(feeds[one.name], np.int64) for one in session.get_inputs()}
        found.append(session.run(None, taken)[0][0])
    return torch.from_numpy(np.stack(found))


@pytest.fixture(scope="module")
def masked_onnx(tmp_path_factory):
    return onnx_folder(tmp_path_factory.mktemp("masked"))


def session_vectors(source, texts=TEXTS):
    """As `bundle_vectors`, of a source that is ONNX."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(source.model_path), providers=["CPUExecutionProvider"])

    class Graph:
        def __call__(self, **feeds):
            arrays = {name: tensor.numpy() for name, tensor in feeds.items()}
            return torch.from_numpy(session.run([source.card.embedding.output], arrays)[0])

    from dataclasses import replace

    return bundle_vectors(replace(source, module=Graph()), texts)


def test_truncation_inside_a_tokenizer_s_file_counts(masked_onnx):
    truncated(masked_onnx, 28)
    source = open_source(str(masked_onnx / "model.onnx"))
    assert source.card.preprocess["max_length"] == 28
    assert cosines(session_vectors(source), onnx_vectors(masked_onnx, TEXTS)).min() > 0.99999


def test_a_graph_takes_no_more_tokens_than_it_runs_on(masked_onnx):
    truncated(masked_onnx, 200)
    assert open_source(str(masked_onnx / "model.onnx")).card.preprocess["max_length"] == 120
    with pytest.raises(SourceError, match="121") as caught:
        open_source(str(masked_onnx / "model.onnx"), Options(max_length=121))
    assert "120 tokens" in caught.value.hint


def test_padding_inside_a_tokenizer_s_file_counts_where_no_mask_marks_it(tmp_path):
    home = onnx_folder(tmp_path, ("input_ids",))
    padding = {"strategy": {"Fixed": 40}, "direction": "Left", "pad_to_multiple_of": None}
    padding |= {"pad_id": 4, "pad_type_id": 0, "pad_token": "[MASK]"}
    truncated(home, 40, padding)
    source = open_source(str(home / "model.onnx"))
    assert cosines(session_vectors(source), onnx_vectors(home, TEXTS)).min() > 0.99999
    with pytest.raises(SourceError, match="padded to 40"):
        open_source(str(home / "model.onnx"), Options(max_length=30))
    truncated(home, 40, padding | {"strategy": "BatchLongest", "pad_to_multiple_of": 8})
    with pytest.raises(SourceError, match="multiple of 8"):
        open_source(str(home / "model.onnx"))
