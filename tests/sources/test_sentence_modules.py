"""Every module of a sentence-transformers folder runs as it does there, or is refused by its name."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
package = pytest.importorskip("sentence_transformers")

from deploykit.errors import SourceError  # noqa: E402
from deploykit.sources import Options, open_source  # noqa: E402
from tests import tiny  # noqa: E402
from tests.sources.test_sentence_settings import assert_as_there, folder_with, write  # noqa: E402
from tests.sources.test_sentence_transformers import encode, reference, worst_cosine  # noqa: E402

OLD = "sentence_transformers.models"
WORDS = ["cat", "The", "dog", "mat", "sat", "river", "house", "don't", "pad"]
TEXTS = ["The cat, sat on the MAT!", "(dog) don't river house cat", "nothing known here", "river river dog", ""]


def modules():
    import sentence_transformers.sentence_transformer.modules as found

    return found


def saved(root, chain):
    """A folder that the original package wrote itself."""
    torch.manual_seed(3)
    model = package.SentenceTransformer(modules=list(chain), device="cpu")
    for name, weight in model.named_parameters():
        if "auto_model" not in name and "model." not in name:
            torch.nn.init.normal_(weight, std=0.5)
    model.save(str(root / "model"))
    return root / "model"


def word_table(size=7):
    tokenizer = modules().tokenizer.WhitespaceTokenizer(["PAD", *WORDS], stop_words=["on", "the"])
    weights = np.random.default_rng(0).normal(size=(len(WORDS) + 1, size)).astype(np.float32)
    return modules().WordEmbeddings(tokenizer, weights)


@pytest.mark.parametrize("mode", ["mean", "max", "mean_sqrt_len_tokens", "weightedmean", ("mean", "max")])
def test_a_table_of_words_matches(tmp_path, mode):
    folder = saved(tmp_path, [word_table(), modules().Pooling(7, mode)])
    known = [text for text in TEXTS if "max" not in mode or text not in ("", "nothing known here")]
    assert_equal(open_source(str(folder)), tmp_path, reference(folder, known), known)


def assert_equal(source, root, theirs, texts, kind=None):
    np.testing.assert_allclose(encode(source, texts, root, kind=kind), theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mode", ["mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"])
def test_weights_of_words_match(tmp_path, mode):
    weights = modules().WordWeights(["PAD", *WORDS], {"cat": 0.3, "the": 2.0, "river": 5.0}, unknown_word_weight=0.7)
    folder = tmp_path / "model"
    package.SentenceTransformer(modules=[word_table(), weights, modules().Pooling(7, mode)], device="cpu").save(
        str(folder)
    )
    known = [text for text in TEXTS if mode != "lasttoken" or text]
    assert_equal(open_source(str(folder)), tmp_path, reference(folder, known), known)


@pytest.mark.parametrize("kind", ["CNN", "LSTM"])
def test_convolutions_and_recurrent_networks_match(tmp_path, kind):
    middle = modules().CNN(7, 5, [1, 3]) if kind == "CNN" else modules().LSTM(7, 5, num_layers=2)
    folder = saved(tmp_path, [word_table(), middle, modules().Pooling(10, "mean"), modules().Dense(10, 6)])
    source = open_source(str(folder))
    theirs = np.concatenate([reference(folder, [text]) for text in TEXTS])  # a batch's padding reaches a convolution
    assert_equal(source, tmp_path, theirs, TEXTS)
    assert [spec.name for spec in source.card.inputs] == ["input_ids", "attention_mask"]


def static(root, **weights):
    """A StaticEmbedding in a tokenizer of its own, whose special tokens it does not add."""
    from tokenizers import Tokenizer

    tiny.wordpiece(root / "tokenizer")
    tokenizer = Tokenizer.from_file(str(root / "tokenizer" / "tokenizer.json"))
    return modules().StaticEmbedding(tokenizer, embedding_dim=11)


def test_a_static_embedding_matches(tmp_path):
    folder = saved(tmp_path, [static(tmp_path), modules().Normalize()])
    texts = [*tiny.TEXTS, "river " * 700, ""]
    source = open_source(str(folder))
    assert_equal(source, tmp_path, reference(folder, texts), texts)
    assert source.card.embedding.normalized


def test_the_weights_of_model2vec_match(tmp_path):
    from safetensors.torch import save_file

    folder = saved(tmp_path, [static(tmp_path)])
    size = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    parts = {
        "embeddings": torch.randn(20, 11),
        "mapping": torch.arange(len(size)) % 20,
        "weights": torch.rand(len(size)),
    }
    save_file(parts, folder / "model.safetensors")
    assert_equal(open_source(str(folder)), tmp_path, reference(folder, list(tiny.TEXTS)), list(tiny.TEXTS))


def test_prompts_stand_before_the_texts_of_a_static_embedding(tmp_path):
    folder = saved(tmp_path, [static(tmp_path)])
    write(folder / "config_sentence_transformers.json", {"prompts": {"query": "dog "}, "default_prompt_name": "query"})
    assert_equal(open_source(str(folder)), tmp_path, reference(folder, list(tiny.TEXTS)), list(tiny.TEXTS))


def transformer(root, **settings):
    tiny.tiny_bert(root / "bert")
    return modules().Transformer(str(root / "bert"), max_seq_length=32, **settings)


def test_weighted_layers_match(tmp_path):
    body = transformer(tmp_path, config_kwargs={"output_hidden_states": True})
    layers = modules().WeightedLayerPooling(24, num_hidden_layers=2, layer_start=1)
    folder = saved(tmp_path, [body, layers, modules().Pooling(24, "mean")])
    assert_as_there(folder, tmp_path)


def test_dense_and_normalize_on_every_token_match(tmp_path):
    dense = modules().Dense(24, 9, module_input_name="token_embeddings")
    normalize = modules().Normalize(module_input_name="token_embeddings")
    folder = saved(tmp_path, [transformer(tmp_path), dense, normalize, modules().Pooling(9, "max")])
    assert_as_there(folder, tmp_path)


def test_a_residual_and_a_linear_dense_match(tmp_path):
    linear = modules().Dense(24, 24, activation_function=torch.nn.Identity(), use_residual=True)
    wide = modules().Dense(24, 9, bias=False, activation_function=torch.nn.GELU(), use_residual=True)
    chain = [transformer(tmp_path), modules().Pooling(24, "cls"), modules().Dropout(0.5), linear, wide]
    assert_as_there(saved(tmp_path, chain), tmp_path)


@pytest.mark.parametrize("route", ["query", "document"])
def test_one_route_of_a_router_matches(tmp_path, route):
    router = modules().Router.for_query_document(
        query_modules=[static(tmp_path), modules().Dense(11, 24)],
        document_modules=[transformer(tmp_path), modules().Pooling(24, "mean")],
    )
    folder = saved(tmp_path, [router, modules().Normalize()])
    with pytest.raises(SourceError) as caught:
        open_source(str(folder))
    assert "route = 'query' or route = 'document'" in caught.value.hint
    source = open_source(str(folder), Options(route=route))
    assert source.card.provenance["route"] == route
    assert_equal(source, tmp_path, reference(folder, list(tiny.TEXTS), task=route), list(tiny.TEXTS))


def test_routes_behind_the_pooling_match(tmp_path):
    asym = modules().Router({"query": [modules().Dense(24, 9)], "doc": [modules().Dense(24, 9)]})
    folder = saved(tmp_path, [transformer(tmp_path), modules().Pooling(24, "mean"), asym])
    (folder / "2_Router" / "router_config.json").rename(folder / "2_Router" / "config.json")
    assert_as_there(folder, tmp_path, Options(route="query"))
    source = open_source(str(folder), Options(route="doc"))
    assert_equal(source, tmp_path, reference(folder, list(tiny.TEXTS), task="doc"), list(tiny.TEXTS))
    with pytest.raises(SourceError, match="no route 'docs'"):
        open_source(str(folder), Options(route="docs"))


def test_a_route_is_refused_where_there_is_none(tmp_path):
    folder = folder_with(tmp_path, {})
    with pytest.raises(SourceError, match="no routes"):
        open_source(str(folder), Options(route="query"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A folder of the older CLIPModel, in which the model lies in a folder of its own."""
    import transformers

    root = tmp_path_factory.mktemp("clip") / "model"
    text = {"vocab_size": 113, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 3, "max_position_embeddings": 20, "eos_token_id": 3}
    vision = {"hidden_size": 36, "intermediate_size": 44, "num_hidden_layers": 2, "num_attention_heads": 3}
    config = transformers.CLIPConfig(
        text_config=text, vision_config=vision | {"image_size": 30, "patch_size": 6}, projection_dim=14
    )
    transformers.CLIPModel(config).save_pretrained(root / "0_CLIPModel")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny.wordpiece(root / "0_CLIPModel", 20))
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 30}, crop_size={"height": 30, "width": 30})
    transformers.CLIPProcessor(images, tokenizer).save_pretrained(root / "0_CLIPModel")
    names = [("0_CLIPModel", "CLIPModel"), ("1_Normalize", "Normalize")]
    listed = [{"idx": i, "name": str(i), "path": path, "type": f"{OLD}.{kind}"} for i, (path, kind) in enumerate(names)]
    write(root / "modules.json", listed)
    return root


def test_the_texts_of_a_dual_encoder_match(clip, tmp_path):
    source = open_source(str(clip), Options(tower="text"))
    assert_equal(source, tmp_path, reference(clip, list(tiny.TEXTS)), list(tiny.TEXTS))


def test_the_pictures_of_a_dual_encoder_match(clip, tmp_path):
    from PIL import Image

    colors = np.random.default_rng(0).integers(0, 255, (2, 50, 70, 3)).astype(np.uint8)
    pictures = [Image.fromarray(picture) for picture in colors]
    source = open_source(str(clip), Options(tower="vision"))
    assert (source.card.modality, source.card.embedding.normalized) == ("image", True)
    assert worst_cosine(encode(source, pictures, tmp_path), reference(clip, pictures)) >= 0.9999


@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_pictures_whose_places_are_pooled_match(tmp_path, mode):
    from PIL import Image

    body = modules().Transformer(str(tiny.tiny_vit(tmp_path / "vit")))
    folder = saved(tmp_path, [body, modules().Pooling(36, mode), modules().Dense(36, 9)])
    colors = np.random.default_rng(0).integers(0, 255, (2, 50, 70, 3)).astype(np.uint8)
    pictures = [Image.fromarray(picture) for picture in colors]
    theirs = reference(folder, pictures)
    assert worst_cosine(encode(open_source(str(folder)), pictures, tmp_path), theirs) >= 0.9999


def test_a_dual_encoder_asks_for_a_tower(clip):
    with pytest.raises(SourceError, match="more than one") as caught:
        open_source(str(clip))
    assert "tower = 'text' or tower = 'vision'" in caught.value.hint


def chain_of(root, *types):
    folder = folder_with(root, {})
    listed = json.loads((folder / "modules.json").read_text())[:1]
    for index, kind in enumerate(types, 1):
        write(folder / str(index) / "config.json", {})
        listed.append({"idx": index, "name": str(index), "path": str(index), "type": kind})
    write(folder / "modules.json", listed)
    return folder


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("sentence_transformers.sparse_encoder.modules.SpladePooling", "SpladePooling: it gives sparse vectors"),
        (
            "sentence_transformers.multi_vector_encoder.modules.MultiVectorMask",
            "MultiVectorMask: it gives a vector for",
        ),
        ("sentence_transformers.cross_encoder.modules.LogitScore", "LogitScore: it scores pairs"),
        ("sentence_transformers.models.BoW", "BoW: its vector counts words"),
        ("pylate.models.Dense.Dense", "ColBERT"),
        ("sentence_transformers.models.Unheard", "Unheard"),
    ],
)
def test_a_module_that_gives_no_embedding_is_refused_by_its_name(tmp_path, kind, says):
    with pytest.raises(SourceError, match=says):
        open_source(str(chain_of(tmp_path, kind)))


def test_token_vectors_that_nothing_pools_are_refused(tmp_path):
    with pytest.raises(SourceError, match="nothing pools its tokens"):
        open_source(str(chain_of(tmp_path, f"{OLD}.Normalize")))


def test_an_argument_of_the_caller_is_refused(tmp_path):
    folder = folder_with(tmp_path, {})
    listed = json.loads((folder / "modules.json").read_text())
    listed[0]["kwargs"] = ["task"]
    write(folder / "modules.json", listed)
    with pytest.raises(SourceError, match="'task'"):
        open_source(str(folder))


@pytest.mark.parametrize(
    ("place", "key"), [("1_Pooling", "pooling_mode_first"), ("2_Dense", "scale"), ("3_LayerNorm", "eps")]
)
def test_an_unknown_key_of_a_module_is_refused_by_its_name(tmp_path, place, key):
    dense = {"in_features": 24, "out_features": 10, "bias": True, "activation_function": "torch.nn.Tanh"}
    folder = folder_with(tmp_path, {}, extra=(("Dense", dense), ("LayerNorm", {"dimension": 10})))
    path = folder / place / "config.json"
    write(path, json.loads(path.read_text()) | {key: 3})
    with pytest.raises(SourceError, match=key):
        open_source(str(folder))


def test_a_model_that_runs_as_a_whole_there_is_not_cut_in_half(tmp_path):
    from transformers import BartConfig, BartModel

    sizes = {"d_model": 24, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 3, "decoder_attention_heads": 3}
    folder = folder_with(tmp_path, {"max_seq_length": 32})
    BartModel(BartConfig(vocab_size=113, max_position_embeddings=64, **sizes, **heads)).save_pretrained(folder)
    with pytest.raises(SourceError, match="run as a whole"):
        open_source(str(folder))


@pytest.mark.parametrize("kind", ["recurrent", "prompts"])
def test_what_is_new_in_these_graphs_is_proven(tmp_path, kind):
    """An LSTM over padded texts, and a mask of pooled tokens: through the exporter, at the lengths of a proof."""
    from deploykit.graph.export import ExportOptions, export

    if kind == "recurrent":
        chain = [word_table(), modules().LSTM(7, 5), modules().Pooling(10, "mean")]
        folder = saved(tmp_path, chain)
    else:
        pooling = {"pooling_mode": "mean", "include_prompt": False}
        folder = folder_with(tmp_path, {"max_seq_length": 16}, pooling, prompts={"query": "the river: "})
    source = open_source(str(folder), Options(max_length=8))
    exported, _ = export(source, ExportOptions(), tmp_path)
    assert exported.proof["cosine_min"] >= 0.99999
