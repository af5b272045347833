"""Real parses and builds with tensorrt-rtx, which needs no GPU for either; skipped where it is not installed."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("tensorrt_rtx", exc_type=ImportError)

from deploykit import registry  # noqa: E402
from deploykit.errors import BundleError, ExportError, RecipeError  # noqa: E402
from deploykit.graph import prove  # noqa: E402
from deploykit.precisions import Task  # noqa: E402
from deploykit.runtime.manifest import Limits  # noqa: E402
from deploykit.runtime.tensorrt.build import build  # noqa: E402
from deploykit.runtime.tensorrt.flavour import RTX  # noqa: E402
from deploykit.runtime.tensorrt.recipe import Recipe  # noqa: E402
from deploykit.targets import tensorrt, tensorrt_rtx  # noqa: E402
from tests.quantize.conftest import as_arrays, bert, calibration, resnet, vit  # noqa: F401, E402

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
SM = {"fp32": "8.6", "fp16": "8.6", "bf16": "8.6", "int8": "8.6", "fp8": "8.9"}


@pytest.fixture(scope="module")
def lowered(calibration, tmp_path_factory):  # noqa: F811
    """``lowered(portable, precision)``: (the card with its bounds, the model in the form that TensorRT takes)."""
    import dataclasses

    made = {}

    def make(portable, precision):
        key = portable.path, precision
        if key not in made:
            out = tmp_path_factory.mktemp(precision)
            module = registry.module("precisions", precision)
            form = module.FORMS.get("tensorrt-rtx", "")
            facts = module.lower(Task(portable.path, portable.card, form, calibration(portable)), module.Options(), out)
            card = dataclasses.replace(portable.card, limits=Limits({"length": (1, 64)}))
            made[key] = card, portable.path if facts.get("unchanged") else out / "model.onnx"
        return made[key]

    return make


@pytest.mark.parametrize("model", ["bert", "vit", "resnet"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_engine_is_built_with_its_metadata(request, lowered, tmp_path, model, precision):
    portable = request.getfixturevalue(model)
    card, path = lowered(portable, precision)
    sm = SM[precision]
    compiled = tensorrt_rtx.compile(path, card, precision, tensorrt_rtx.Options(sm=(sm,)), tmp_path)
    stem = f"model.sm{sm.replace('.', '')}"
    engine = (tmp_path / f"{stem}.engine").read_bytes()
    metadata = json.loads((tmp_path / f"{stem}.json").read_text())
    assert len(engine) == metadata["bytes"] > 10_000
    assert metadata["digests"]["engine"] == hashlib.sha256(engine).hexdigest()
    assert metadata["compute_capability"] == sm
    assert metadata["version"] == RTX.version()
    assert [t["name"] for t in metadata["inputs"]] == [spec.name for spec in card.inputs]
    assert [t["name"] for t in metadata["outputs"]] == [card.embedding.output]
    assert (metadata["quantize"] > 0) == (precision in ("int8", "fp8"))
    computes = {"fp32": "float", "fp16": "half", "bf16": "bf16", "int8": "int8", "fp8": "fp8"}[precision]
    assert metadata["layers_by_type"][computes] >= metadata["products"][precision] > 0
    assert sum(metadata["layers_by_type"].values()) <= metadata["layers"]
    told = tensorrt_rtx.audit(tmp_path / compiled.path, card, compiled.settings)["engines"]
    assert {name: facts["layers_by_type"] for name, facts in told.items()} == {
        f"model.sm{sm.replace('.', '')}.engine": metadata["layers_by_type"]
    }
    assert "built ahead of time" in compiled.notes[0]
    assert sm in compiled.notes[0]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_audit_counts_what_the_graph_computes_in(bert, lowered, tmp_path, precision):  # noqa: F811
    card, path = lowered(bert, precision)
    compiled = tensorrt_rtx.compile(path, card, precision, tensorrt_rtx.Options(), tmp_path)
    artifact = tmp_path / compiled.path if compiled.path else path
    facts = tensorrt_rtx.audit(artifact, card, compiled.settings)
    assert facts["effective"] == precision
    assert facts["products"][precision] >= 12
    assert (facts["dequantize"] > 0) == (precision in ("int8", "fp8"))
    assert precision in facts["sentence"]


@pytest.mark.parametrize("model", ["bert", "vit", "resnet"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_cpu_computes_the_numbers_of_the_typed_graph(request, lowered, tmp_path, model, precision):
    portable = request.getfixturevalue(model)
    card, path = lowered(portable, precision)
    compiled = tensorrt.compile(path, card, precision, tensorrt.Options(), tmp_path)
    artifact = tmp_path / compiled.path if compiled.path else path
    engine = tensorrt.check_engine(artifact, card, compiled.settings)
    tolerance = registry.module("precisions", precision).TOLERANCE
    feeds = portable.feeds(3, 13)
    case = prove.Case({"batch": 3, "length": 13}, as_arrays(feeds), portable.reference(feeds))
    output = card.embedding.output
    assert prove.prove([case], lambda given: engine.run(given)[output], tolerance, model)["cosine_min"] > 0.97
    many = engine.run_many([case.feeds, case.feeds])  # opens the file once more
    np.testing.assert_allclose(many[1][output], engine.run(case.feeds)[output], atol=0.05)
    engine.close()


def test_without_sm_nothing_is_built_and_it_says_so(bert, lowered, tmp_path):  # noqa: F811
    card, path = lowered(bert, "fp16")
    compiled = tensorrt_rtx.compile(path, card, "fp16", tensorrt_rtx.Options(), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx"]
    assert "no engine was built here" in compiled.notes[0]
    assert compiled.requires == {"compute_capability": "7.5", "packages": {"tensorrt-rtx": ">=1.7"}}


@pytest.mark.parametrize(("precision", "sm"), [("fp32", "7.5"), ("int8", "7.5"), ("fp8", "8.0")])
def test_a_capability_below_the_precision_is_refused(bert, lowered, tmp_path, precision, sm):  # noqa: F811
    card, path = lowered(bert, precision)
    with pytest.raises(RecipeError, match=f"needs compute capability .* asks for {sm}"):
        tensorrt_rtx.compile(path, card, precision, tensorrt_rtx.Options(sm=(sm,)), tmp_path)
    assert not list(tmp_path.glob("*.engine"))


@pytest.mark.parametrize(("precision", "sm", "said"), [("fp32", "7.5", "FP32 GEMM"), ("fp8", "8.0", "fp8_e4m3")])
def test_what_the_builder_refuses_is_an_error_with_its_own_words(bert, lowered, tmp_path, precision, sm, said):  # noqa: F811
    import tensorrt_rtx as trt

    card, path = lowered(bert, precision)
    recipe = Recipe.read(tensorrt_rtx.compile(path, card, precision, tensorrt_rtx.Options(), tmp_path).settings)
    with pytest.raises(BundleError, match=f"for compute capability {sm}: .*{said}"):
        build(trt, "tensorrt-rtx", path, recipe, sm)


def test_a_capability_that_the_flavour_lacks_is_refused(bert, lowered, tmp_path):  # noqa: F811
    card, path = lowered(bert, "fp16")
    with pytest.raises(ExportError, match=r"no compute capability 9\.0") as caught:
        tensorrt_rtx.compile(path, card, "fp16", tensorrt_rtx.Options(sm=("9.0",)), tmp_path)
    assert "8.9" in caught.value.hint


def test_profiles_are_what_was_asked_for(bert, lowered, tmp_path):  # noqa: F811
    card, path = lowered(bert, "fp16")
    options = tensorrt_rtx.Options(batch=(1, 4, 16), lengths=(16, 64), sm=("8.9",), workspace_mib=256)
    tensorrt_rtx.compile(path, card, "fp16", options, tmp_path)
    recipe = json.loads((tmp_path / "model.sm89.json").read_text())["recipe"]
    shapes = [profile["input_ids"] for profile in recipe["profiles"]]
    assert [s["smallest"] for s in shapes] == [[1, 1], [1, 17]]
    assert [s["largest"] for s in shapes] == [[16, 16], [16, 64]]


def test_a_real_build_tells_how_far_it_is(bert, lowered, tmp_path, monkeypatch, caplog):  # noqa: F811
    from deploykit.runtime.tensorrt import build as module

    monkeypatch.setattr(module, "_PROGRESS_S", 0.0)
    card, path = lowered(bert, "fp16")
    tensorrt_rtx.compile(path, card, "fp16", tensorrt_rtx.Options(sm=("8.9",)), tmp_path)
    said = [record.getMessage() for record in caplog.records]
    assert any(" of " in line and "building the engine of 'model.onnx'" in line for line in said)
