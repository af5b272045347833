"""Further outputs at runtime: token vectors without padding, in the caller's order, and what is wrong is named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from deploykit.runtime import further, load
from deploykit.runtime.encoder import Encoder
from deploykit.runtime.errors import CheckError, InputError
from deploykit.runtime.manifest import TensorSpec
from deploykit.runtime.selection import Report
from tests.runtime import made

pytest.importorskip("onnxruntime")

TEXTS = ["w1 w2 w3", "", "w4 w5 " * 30, "w6", "w7 w8"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """The tiny encoder, whose graph gives its masked token vectors and their sum too."""
    onnx = pytest.importorskip("onnx")
    folder = tmp_path_factory.mktemp("further")
    model = onnx.load(made.save_model(folder / "model.onnx"))
    for name, shape in (("kept", ["batch", "length", 6]), ("total", ["batch", 6])):
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    onnx.save(model, folder / "two.onnx")
    more = (TensorSpec("kept", "float32", ("batch", "length", 6)), TensorSpec("total", "float32", ("batch", 6)))
    card = replace(made.card(), outputs=(*made.card().outputs, *more))
    variants = made.contents(folder / "again").variants[:1]
    return made.bundle(folder, card=card, portable=folder / "two.onnx", variants=variants)


@pytest.fixture(scope="module")
def encoder(bundle):
    with load(f"{bundle.root}@onnxruntime-fp32", threads=2) as opened:
        yield opened


def tokens(text):
    words = text.split()[: made.MAX_LENGTH - 2]
    return made.TABLE[[made.WORDS.index(word) for word in ("[CLS]", *words, "[SEP]")]]


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1], "w1 w2", TEXTS * 40])
def test_token_vectors_come_without_padding(encoder, texts):
    listed = [texts] if isinstance(texts, str) else texts
    found = encoder.encode(texts, output="kept")
    assert len(found) == len(listed)
    for got, text in zip(found, listed, strict=True):
        np.testing.assert_allclose(got, tokens(text), atol=1e-6)


def test_pooled_vectors_are_one_array(encoder):
    found = encoder.encode(TEXTS, output="total")
    np.testing.assert_allclose(found, np.stack([tokens(text).sum(axis=0) for text in TEXTS]), atol=1e-5)
    assert encoder.encode([], output="total").shape == (0, 6)
    assert encoder.encode([], output="kept") == []


def test_the_embedding_is_the_default_and_has_a_name(encoder):
    assert encoder.outputs == ("sentence_embedding", "kept", "total")
    np.testing.assert_array_equal(encoder.encode(TEXTS), encoder.encode(TEXTS, output="sentence_embedding"))


def test_nothing_but_the_embedding_is_fetched_until_it_is_asked_for(bundle):
    with load(f"{bundle.root}@onnxruntime-fp32") as opened:
        opened.encode(TEXTS)
        assert opened._engine._outputs == ["sentence_embedding"]
        assert opened._whole is None
        opened.encode(TEXTS, output="kept")
        assert opened._whole._outputs == ["sentence_embedding", "kept", "total"]


def test_ready_tensors_have_further_outputs_too(encoder):
    ids = np.array([[2, 5, 3, 0], [2, 6, 7, 3]])
    given = {"input_ids": ids, "attention_mask": np.array([[1, 1, 1, 0], [1, 1, 1, 1]])}
    first, second = encoder.encode(given, output="kept")
    np.testing.assert_allclose(first, made.TABLE[ids[0, :3]], atol=1e-6)
    np.testing.assert_allclose(second, made.TABLE[ids[1]], atol=1e-6)


def test_an_unknown_output_names_the_nearest(encoder, shared):
    with pytest.raises(InputError, match="no output 'keep'") as caught:
        encoder.encode(TEXTS, output="keep")
    assert "'kept'" in caught.value.hint
    with load(shared.root) as plain, pytest.raises(InputError, match="no output 'kept'") as caught:
        plain.encode(TEXTS, output="kept")
    assert "embedding alone" in caught.value.hint


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((1, 3, 5), np.float32), "instead of"),
        (np.zeros((1, 6), np.float32), "instead of"),
        (np.full((1, 3, 6), np.nan, np.float32), "not finite"),
    ],
)
def test_what_is_wrong_never_leaves(encoder, array, reason):
    class Fixed:
        def run(self, feeds):
            return {"kept": array}

    parts = (encoder.bundle, encoder.variant, Fixed(), encoder._preprocessor, Report("x", "", (), {}))
    with pytest.raises(CheckError, match=reason):
        Encoder(*parts, lanes=1).encode("w1", output="kept")


def test_without_a_mask_only_inputs_of_one_size_share_a_batch(encoder):
    """Frames of a waveform: their axis is not the mask's, so nothing would tell which of them are padding."""
    spec = TensorSpec("kept", "float32", ("batch", "frames", 6))
    card = replace(encoder._card, outputs=(encoder._card.outputs[0], spec))
    assert not further.is_masked(card, spec)
    opened = replace(encoder.bundle, manifest=replace(encoder.bundle.manifest, card=card))
    seen = []

    class Look:
        def run_many(self, batches):
            answers = []
            for feeds in batches:
                seen.append(feeds["input_ids"].shape)
                answers.append({"kept": made.TABLE[feeds["input_ids"]]})
            return answers

    parts = (opened, encoder.variant, Look(), encoder._preprocessor, Report("x", "", (), {}))
    texts = ["w1", "w2 w3", "w4", "w5 w6"]
    for got, text in zip(Encoder(*parts, lanes=1).encode(texts, output="kept"), texts, strict=True):
        np.testing.assert_allclose(got, tokens(text))
    assert sorted(seen) == [(2, 3), (2, 4)]
