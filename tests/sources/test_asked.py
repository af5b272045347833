"""What may be asked of a source: the first numbers of a vector, prompts, one tower; and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from deploykit.errors import SourceError  # noqa: E402
from deploykit.runtime.preprocess import open_preprocessor  # noqa: E402
from deploykit.sources import Options, open_source  # noqa: E402
from tests import tiny  # noqa: E402

MEAN = {"pooling_mode_mean_tokens": True}
NORMALIZE = (("Normalize", {}),)
TEXTS = list(tiny.TEXTS)
UNIT = """
import torch

class Unit(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.normalize(x.cumsum(1), dim=-1)

def unit():
    return Unit(), (torch.randn(3, 12),)
"""


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


def cut(vectors, dim):
    """The first numbers, at length 1."""
    short = vectors[:, :dim]
    return short / np.linalg.norm(short, axis=1, keepdims=True)


@pytest.mark.parametrize("name", ["bert", "vit", "wav2vec2"])
def test_the_first_numbers_are_kept_and_normalised_as_asked(models, name):
    whole, short = (open_source(str(models(name)), Options(dim=dim, normalize=True)) for dim in (None, 7))
    assert short.card.embedding.dim == 7
    assert short.card.outputs[0].shape == ("batch", 7)
    assert any("first 7 numbers, at length 1 again" in note for note in short.card.provenance["notes"])
    inputs = whole.make_inputs(3, {axis: sizes[-1] for axis, sizes in whole.sizes.items()}, 0)
    np.testing.assert_allclose(short.module(**inputs), cut(whole.module(**inputs).numpy(), 7), atol=1e-5)


def test_a_folder_s_own_truncation_holds_and_another_may_be_asked_for(tmp_path):
    folder = tiny.tiny_sentence_transformer(tmp_path / "model", MEAN, NORMALIZE, truncate_dim=9)
    source = open_source(str(folder))
    assert (source.card.embedding.dim, source.card.embedding.normalized) == (9, False)
    want = reference(folder, TEXTS)  # which cuts behind its Normalize, and leaves the vectors shorter than 1
    np.testing.assert_allclose(encode(source, TEXTS, tmp_path), want, atol=1e-5)
    again = open_source(str(folder), Options(normalize=True))
    np.testing.assert_allclose(encode(again, TEXTS, tmp_path), cut(want, 9), atol=1e-5)
    assert open_source(str(folder), Options(dim=5)).card.embedding.dim == 5


def test_a_truncation_that_is_no_number_is_refused(tmp_path):
    folder = tiny.tiny_sentence_transformer(tmp_path / "model", MEAN, truncate_dim="9")
    with pytest.raises(SourceError, match="truncate_dim '9'"):
        open_source(str(folder))


@pytest.mark.parametrize("name", ["bert", "resnet"])
def test_more_numbers_than_there_are_is_refused(models, name):
    with pytest.raises(SourceError, match="cannot keep 1024 numbers") as caught:
        open_source(str(models(name)), Options(dim=1024))
    assert "1 to" in caught.value.hint


def test_a_module_that_normalises_by_itself_does_so_again_behind_the_cut(tmp_path):
    (tmp_path / "unit.py").write_text(UNIT)
    spec = f"py:{tmp_path / 'unit.py'}:unit"
    source = open_source(spec, Options(dim=4))
    assert source.card.embedding.normalized
    assert source.card.inputs[0].shape == ("batch", 12)
    inputs = source.make_inputs(3, {}, 0)
    np.testing.assert_allclose(source.module(**inputs), cut(open_source(spec).module(**inputs).numpy(), 4), atol=1e-6)
    assert not open_source(spec, Options(dim=4, normalize=False)).card.embedding.normalized


def test_an_onnx_model_that_normalises_by_itself_does_so_again_behind_the_cut(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    (tmp_path / "unit.py").write_text(UNIT)
    module = open_source(f"py:{tmp_path / 'unit.py'}:unit").module
    path = tmp_path / "unit.onnx"
    axes = {"x": {0: "batch"}, "y": {0: "batch"}}
    settings = {"dynamo": False, "opset_version": 17, "input_names": ["x"], "output_names": ["y"], "dynamic_axes": axes}
    torch.onnx.export(module.body, (torch.randn(3, 12),), str(path), **settings)
    source = open_source(str(path), Options(dim=4))
    assert (source.card.embedding.dim, source.card.embedding.normalized) == (4, True)
    x = source.make_inputs(5, {}, 0)["x"]
    got = onnxruntime.InferenceSession(source.model_path).run(None, {"x": x.numpy()})[0]
    np.testing.assert_allclose(got, cut(module(x).numpy(), 4), atol=1e-6)
    with pytest.raises(SourceError, match=r"unit\.onnx cannot keep 99 numbers"):
        open_source(str(path), Options(dim=99))


def test_minilm_keeps_its_first_256_numbers(minilm, tmp_path):
    texts = [*TEXTS, "A man is playing a guitar.", "long " * 400]
    got = encode(open_source(str(minilm), Options(dim=256)), texts, tmp_path)
    want = reference(minilm, texts)
    np.testing.assert_allclose(got, cut(want, 256), atol=1e-5)


def test_prompts_may_be_given_where_the_folder_has_none(models, tmp_path):
    folder = tiny.tiny_sentence_transformer(tmp_path / "model", MEAN)
    source = open_source(str(folder), Options(prompts={"query": "the cat: "}))
    assert source.card.preprocess["prompts"] == {"query": "the cat: "}
    want = reference(folder, TEXTS, prompt="the cat: ")
    np.testing.assert_allclose(encode(source, TEXTS, tmp_path, "query"), want, atol=1e-5)
    np.testing.assert_allclose(encode(source, TEXTS, tmp_path), reference(folder, TEXTS), atol=1e-5)
    plain = open_source(str(models("bert")), Options(prompts={"query": "the cat: "}))
    np.testing.assert_allclose(encode(plain, TEXTS, tmp_path, "query"), want, atol=1e-5)


def test_prompts_that_are_given_are_added_to_those_of_the_folder(tmp_path):
    own = {"query": "a ", "passage": "the "}
    folder = tiny.tiny_sentence_transformer(tmp_path / "model", MEAN, prompts=own, default_prompt_name="passage")
    source = open_source(str(folder), Options(prompts={"query": "big ", "title": "red "}))
    assert source.card.preprocess["prompts"] == {"query": "big ", "passage": "the ", "title": "red "}
    assert source.card.preprocess["default_prompt"] == "passage"


def test_a_prompt_behind_which_the_last_token_stands_may_be_left_out_of_the_pooling(tmp_path):
    pooling = {"pooling_mode": "lasttoken", "include_prompt": False}
    folder = tiny.tiny_sentence_transformer(tmp_path / "model", pooling, prompts={"query": "the cat "})
    vectors = encode(open_source(str(folder)), TEXTS, tmp_path, "query")
    np.testing.assert_allclose(vectors, reference(folder, TEXTS, prompt_name="query"), atol=1e-5)


def test_a_given_prompt_is_left_out_where_the_pooling_leaves_prompts_out(tmp_path):
    folder = tiny.tiny_sentence_transformer(tmp_path / "model", MEAN | {"include_prompt": False})
    source = open_source(str(folder), Options(prompts={"query": "query: "}))
    want = reference(folder, TEXTS, prompt="query: ")
    np.testing.assert_allclose(encode(source, TEXTS, tmp_path, kind="query"), want, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("vit", {"prompts": {"query": "a "}}),
        ("vit", {"max_length": 9}),
        ("vit", {"fixed_length": 9}),
        ("wav2vec2", {"fixed_length": 9}),
        ("bert", {"tower": "text"}),
    ],
)
def test_what_a_source_cannot_honour_is_refused(models, name, asked):
    with pytest.raises(SourceError) as caught:
        open_source(str(models(name)), Options(**asked))
    assert next(iter(asked)) in caught.value.message + caught.value.hint


def test_a_chain_of_modules_keeps_its_preprocessing(tmp_path):
    folder = tiny.tiny_sentence_transformer(tmp_path / "model", MEAN)
    with pytest.raises(SourceError, match="'preprocess' was asked for"):
        open_source(str(folder), Options(preprocess="none"))
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {}, "default_prompt_name": "x"}))
    with pytest.raises(SourceError, match="default prompt 'x'"):
        open_source(str(folder))


def test_a_finished_source_of_a_factory_takes_no_options(tmp_path):
    (tmp_path / "made.py").write_text(
        f"from deploykit.sources import open_source\n{UNIT}\n"
        f"def made():\n    return open_source('py:{tmp_path / 'made.py'}:unit')\n"
    )
    spec = f"py:{tmp_path / 'made.py'}:made"
    assert open_source(spec).card.embedding.dim == 12
    with pytest.raises(SourceError, match="made returns a Source"):
        open_source(spec, Options(dim=4))
