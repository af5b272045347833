"""The whole way, for every modality: a model folder in, a bundle out that gives the model's own vectors."""

from __future__ import annotations

import numpy as np
import pytest

import deploykit
from deploykit import report, sources
from deploykit.runtime import hardware
from deploykit.runtime.selftest import cosines, read_inputs, read_reference, selftest
from tests import tiny

MODELS = ("bert", "vit", "resnet", "wav2vec2", "whisper")
BF16 = bool({"avx512_bf16", "amx_bf16"} & set(hardware.cpu_features()))
PRECISIONS = ("fp32", "fp16", "bf16") if BF16 else ("fp32", "fp16")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEPLOYKIT_STORE", str(tmp_path_factory.mktemp("store")))
        yield


@pytest.fixture(scope="module", params=MODELS)
def exported(request, store, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model = getattr(tiny, f"tiny_{request.param}")(folder / "model")
    targets = ("onnxruntime", "openvino")
    bundle = deploykit.export(model, output=folder / "m.bundle", targets=targets, precisions=PRECISIONS)
    return request.param, model, bundle


def test_every_variant_is_there_and_proven(exported):
    _, _, bundle = exported
    expected = {f"{t}-{p}" for t in ("onnxruntime", "openvino") for p in PRECISIONS} - {"onnxruntime-bf16"}
    assert {variant.name for variant in bundle.manifest.variants} == expected
    assert bundle.manifest.refused == ()
    for variant in bundle.manifest.variants:
        assert variant.proof["cases"] >= 3
        assert variant.proof["cosine_min"] >= variant.proof["tolerance"]["cosine"]
        assert variant.latency["single"]["calls"] > 0


def test_every_variant_passes_its_self_test(exported):
    _, _, bundle = exported
    results = selftest(bundle)
    assert len(results) >= len(bundle.manifest.variants)
    assert {result.status for result in results} == {"passed"}, results


def test_the_encoder_gives_the_vectors_of_the_model(exported):
    _, model, bundle = exported
    source = sources.open_source(str(model))
    reference = read_reference(bundle)
    with deploykit.load(bundle.root, variant="onnxruntime-fp32") as encoder:
        vectors = encoder.encode(read_inputs(bundle))
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(reference), source.card.embedding.dim)
    assert cosines(vectors, reference).min() > 0.99999


def test_the_default_variant_is_one_that_passed(exported):
    _, _, bundle = exported
    with deploykit.load(bundle.root, select="manifest") as encoder:
        assert encoder.variant.name == bundle.manifest.default


def test_a_second_export_does_nothing(exported):
    _, model, bundle = exported
    events = []
    recipe = deploykit.Recipe.from_data(
        {
            "source": {"model": str(model)},
            "variants": {"targets": ["onnxruntime", "openvino"], "precisions": list(PRECISIONS)},
            "bundle": {"output": str(bundle.root)},
        }
    )
    outcome = deploykit.run(recipe, on_event=events.append)
    assert outcome.unchanged
    assert {event.state for event in events} == {"reused"}


def test_it_was_judged_by_the_library_of_its_source(exported):
    _, _, bundle = exported
    found = bundle.manifest.provenance["judge"]
    assert found["judged"]
    assert found["library"] == "transformers"
    assert found["compared"] >= 24
    assert found["cosine_min"] > 0.99999
    said = f"transformers {found['version']} ("
    assert said in (bundle.root / "MODEL_CARD.md").read_text()
    assert said in report.text(bundle.manifest, "m.bundle", 400)


def test_the_report_stands_beside_the_bundle(exported):
    _, _, bundle = exported
    page = (bundle.root.parent / "m.report.html").read_text()
    for variant in bundle.manifest.variants:
        assert variant.name in page
