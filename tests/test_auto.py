"""A budget decides what is handed over: the whole way, on a tiny text encoder."""

from __future__ import annotations

import pytest

import deploykit
from deploykit.errors import InputError, RecipeError
from deploykit.pipeline.decide import BudgetError
from tests import tiny

WORDS = ("cat", "dog", "house", "river", "mat", "red", "blue", "big")


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEPLOYKIT_STORE", str(tmp_path_factory.mktemp("store")))
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.tiny_bert(tmp_path_factory.mktemp("bert") / "model")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "texts.txt"
    lines = (" ".join(WORDS[(i * k + k) % 8] for k in range(1, 2 + i % 12)) for i in range(160))
    path.write_text("\n".join(lines))
    return path


def export(model, texts, tmp_path, **choices):
    given = {"calibration": texts, "targets": ["onnxruntime"], "output": tmp_path / "m.bundle", "report": False}
    return deploykit.export(model, **(given | choices))


def test_auto_hands_over_one_variant_a_target_and_tells_of_all(model, texts, tmp_path):
    bundle = export(
        model, texts, tmp_path, precisions=["auto"], budget="drift<=0.2", targets=["onnxruntime", "openvino"]
    )
    manifest = bundle.manifest
    assert sorted(v.target for v in manifest.variants) == ["onnxruntime", "openvino"]
    rows = {row["variant"]: row for row in manifest.candidates}
    assert {v.name for v in manifest.variants} == {name for name, row in rows.items() if row["kept"]}
    assert {"onnxruntime-fp32", "onnxruntime-int8", "onnxruntime-int8-dynamic", "openvino-int8"} <= set(rows)
    assert all(row["reason"] for row in rows.values())
    for target in ("onnxruntime", "openvino"):
        timed = [r for name, r in rows.items() if name.startswith(target) and "p50" in r and r["drift"] <= 0.2]
        kept = next(row for row in timed if row["kept"])
        assert not any(row["high_ms"] < kept["low_ms"] for row in timed)


def test_calibration_and_drift_are_in_the_evidence(model, texts, tmp_path):
    bundle = export(model, texts, tmp_path, precisions=["int8"], budget="none")
    variant = bundle.manifest.variant("onnxruntime-int8")
    samples = bundle.manifest.provenance["samples"]
    assert samples["calibration"]["data"] == "texts.txt"
    assert len(samples["calibration"]["digest"]) == 64
    assert variant.drift["n"] >= 32
    assert 0 < 1 - variant.drift["figures"]["cosine_mean"]["value"] < 0.2
    assert variant.drift["lengths"]["checked"] > 10
    assert variant.audit["asked"] == "int8"
    assert variant.audit["products"]["int8"] > 0


def test_what_breaks_the_budget_is_not_handed_over(model, texts, tmp_path):
    with pytest.warns(UserWarning, match="onnxruntime-int8 is not in the bundle"):
        bundle = export(model, texts, tmp_path, precisions=["fp32", "int8"], budget="drift<=1e-9")
    assert [v.name for v in bundle.manifest.variants] == ["onnxruntime-fp32"]
    assert any("outside drift<=1e-9" in item["reason"] for item in bundle.manifest.refused)


def test_when_whole_int8_drifts_too_much_a_part_goes_back_to_float(model, texts, tmp_path):
    whole = export(model, texts, tmp_path, precisions=["int8"], budget="none").manifest.variant("onnxruntime-int8")
    limit = 0.7 * whole.drift["terms"]["drift"]
    bundle = export(model, texts, tmp_path, precisions=["int8"], budget=f"drift<={limit:.6f}")
    partial = bundle.manifest.variant("onnxruntime-int8-partial")
    assert partial.drift["terms"]["drift"] <= limit
    assert 0 < partial.audit["products"]["int8"] < whole.audit["products"]["int8"]
    search = bundle.manifest.provenance["search"]["search:onnxruntime-int8"]
    assert search["keep"]
    assert len(search["trials"]) > len(search["keep"])
    assert {row["variant"] for row in bundle.manifest.candidates} >= {"onnxruntime-int8", "onnxruntime-int8-partial"}


def test_when_nothing_is_inside_nothing_is_written(model, texts, tmp_path):
    with pytest.raises(BudgetError, match="nothing is inside the budget 'size<=1KB'") as caught:
        export(model, texts, tmp_path, precisions=["auto"], budget="size<=1KB")
    assert caught.value.exit_code == 1
    assert {row["variant"] for row in caught.value.rows} >= {"onnxruntime-fp32", "onnxruntime-int8"}
    assert list(tmp_path.iterdir()) == []


def test_too_few_samples_are_refused_with_their_number(model, tmp_path):
    few = tmp_path / "few.txt"
    few.write_text("a cat\na dog\n")
    with pytest.warns(UserWarning, match="2 calibration"):
        export(model, few, tmp_path, precisions=["fp32", "int8"])


def test_data_of_another_modality_ends_the_run(model, tmp_path):
    with pytest.raises(InputError, match="takes text, and 'builtin:images' holds image"):
        export(model, "builtin:images", tmp_path, precisions=["int8"])
    assert list(tmp_path.iterdir()) == []


def test_a_limit_that_an_export_does_not_measure_is_refused_at_once(model, texts, tmp_path):
    with pytest.raises(RecipeError, match="limits 'p99', which an export does not measure"):
        export(model, texts, tmp_path, budget="p99<=4ms")
