"""What is asked for at the export is in the bundle, and its vectors are those of sentence-transformers."""

from __future__ import annotations

import numpy as np
import pytest

import deploykit
from deploykit.cli import main
from deploykit.errors import InputError
from tests import tiny

TEXTS = list(tiny.TEXTS)
QUERY = "the cat: "


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("asked")
    pooling = {"pooling_mode_mean_tokens": True}
    model = tiny.tiny_sentence_transformer(folder / "model", pooling, (("Normalize", {}),), prompts={"passage": "a "})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEPLOYKIT_STORE", str(folder / "store"))
        bundle = deploykit.export(
            model,
            output=folder / "m.bundle",
            targets=["onnxruntime", "openvino"],
            dim=10,
            prompts={"query": QUERY},
            outputs=["token_embeddings", "pooled:-2"],
            report=False,
        )
    return model, bundle


def wanted(model, prompt):
    package = pytest.importorskip("sentence_transformers")
    vectors = package.SentenceTransformer(str(model), device="cpu").encode(TEXTS, prompt=prompt)[:, :10]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("variant", ["onnxruntime-fp32", "openvino-fp32"])
@pytest.mark.parametrize(("kind", "prompt"), [("query", QUERY), ("passage", "a "), (None, "")])
def test_the_prompt_of_a_kind_and_the_first_numbers(exported, variant, kind, prompt):
    model, bundle = exported
    with deploykit.load(bundle.root, variant=variant) as encoder:
        assert encoder.dim == 10
        np.testing.assert_allclose(encoder.encode(TEXTS, kind=kind), wanted(model, prompt), atol=1e-5)


@pytest.mark.parametrize("variant", ["onnxruntime-fp32", "openvino-fp32"])
def test_token_vectors_are_those_of_sentence_transformers(exported, variant):
    package = pytest.importorskip("sentence_transformers")
    model, bundle = exported
    reference = package.SentenceTransformer(str(model), device="cpu")
    want = reference.encode(TEXTS, output_value="token_embeddings", prompt=QUERY)
    with deploykit.load(bundle.root, variant=variant) as encoder:
        assert encoder.outputs == ("sentence_embedding", "token_embeddings", "pooled_1")
        got = encoder.encode(TEXTS, output="token_embeddings", kind="query")
        assert encoder.encode(TEXTS, output="pooled_1").shape == (len(TEXTS), 24)
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)
    proof = bundle.manifest.variant(variant).proof["outputs"]
    assert {name: figures["cases"] for name, figures in proof.items()} == {"token_embeddings": 18, "pooled_1": 18}


def test_the_card_says_what_was_asked(exported):
    card = exported[1].manifest.card
    assert (card.embedding.dim, card.embedding.normalized) == (10, True)
    assert card.preprocess["prompts"] == {"passage": "a ", "query": QUERY}
    assert exported[1].manifest.provenance["source"]["options"]["dim"] == 10


def test_an_unknown_kind_names_those_that_are_there(exported):
    with deploykit.load(exported[1].root) as encoder, pytest.raises(InputError, match="kind 'quary'") as caught:
        encoder.encode(TEXTS, kind="quary")
    assert "'query'" in caught.value.hint


def test_embed_takes_a_kind(exported, tmp_path, capsys):
    model, bundle = exported
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    words = ["embed", str(bundle.root), str(tmp_path / "texts.txt"), "-o", str(tmp_path / "v.npy"), "--kind", "query"]
    assert main(words) == 0
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), wanted(model, QUERY), atol=1e-5)
