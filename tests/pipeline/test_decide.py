"""From artefacts to what is handed over: what a failed step or a search without an outcome leaves behind."""

from types import SimpleNamespace

import numpy as np
import pytest

from deploykit.drift import compare
from deploykit.pipeline.decide import BudgetError, decide
from deploykit.pipeline.plan import _measure_step
from deploykit.recipe import Recipe


@pytest.fixture
def made(tmp_path):
    """A recipe for precisions under a budget, and the artefacts of fp32 and of an int8 that drifts too much."""

    def make(precisions, limits="drift<=0.01"):
        given = {"source": {"model": "m"}, "variants": {"targets": ["onnxruntime"], "precisions": precisions}}
        recipe = Recipe.from_data(given | {"budget": {"limits": limits}}, where="the test")
        exact = np.random.default_rng(0).normal(size=(600, 8)).astype(np.float32)
        rough = exact + 0.5 * np.random.default_rng(1).normal(size=exact.shape).astype(np.float32)
        artifacts = {"export": SimpleNamespace(path=tmp_path)}
        for precision, got in (("fp32", exact), ("int8", rough)):
            compiled = {"path": "model.onnx", "target": "onnxruntime", "precision": precision}
            verified = {"drift": compare(exact, got).to_json(), "proof": {}}
            (tmp_path / precision).mkdir(exist_ok=True)
            for name in ("model.onnx", "artifact.json"):
                (tmp_path / precision / name).write_text("x")
            artifacts[f"compile:onnxruntime-{precision}"] = SimpleNamespace(
                path=tmp_path / precision, metadata=compiled
            )
            artifacts[f"verify:onnxruntime-{precision}"] = SimpleNamespace(path=tmp_path, metadata=verified)
        return recipe, artifacts

    return make


def test_a_search_that_found_nothing_speaks_in_the_row_of_its_variant(made):
    recipe, artifacts = made(["fp32", "int8"])
    artifacts["search:onnxruntime-int8"] = SimpleNamespace(metadata={"keep": [], "nothing": "no part of it is inside"})
    decided = decide(recipe, artifacts, ())
    (row,) = (row for row in decided.candidates if row["variant"] == "onnxruntime-int8")
    assert row["reason"].endswith("; no part of it is inside")
    assert "search:onnxruntime-int8" in decided.artifacts  # its trials are for the report


def test_when_nothing_is_inside_the_error_has_what_a_search_tried(made):
    recipe, artifacts = made(["int8"])
    trials = [{"keep": [], "drift": 0.1}, {"keep": ["ffn"], "drift": 0.05, "inside": False}]
    artifacts["search:onnxruntime-int8"] = SimpleNamespace(metadata={"keep": [], "trials": trials, "nothing": "none"})
    with pytest.raises(BudgetError) as caught:
        decide(recipe, artifacts, ())
    tried = caught.value.rows[-1]
    assert (tried["variant"], tried["drift"]) == ("onnxruntime-int8-partial", 0.05)
    assert "ffn in float" in tried["reason"]
    assert len(caught.value.rows) == 3


def test_a_search_that_failed_is_told_of(made):
    failure = {"variant": "onnxruntime-int8", "step": "search:onnxruntime-int8", "reason": "it died of SIGSEGV"}
    recipe, artifacts = made(["fp32", "int8"])
    assert failure in decide(recipe, artifacts, (failure,)).refused
    artifacts["measure"] = SimpleNamespace(
        metadata={
            "latency": {
                f"onnxruntime-{p}": {"batch": {"p50_ms": 1.0, "low_ms": 0.9, "high_ms": 1.1, "shape": [8]}}
                for p in ("fp32", "int8")
            }
        }
    )
    auto = decide(made(["auto"])[0], artifacts, (failure,))
    assert {"variant": "onnxruntime-int8-partial", "kept": False, "reason": "not built: it died of SIGSEGV"} in (
        auto.candidates
    )


def test_auto_cannot_do_without_times(made):
    assert _measure_step(made(["auto"])[0], ()).required
    assert not _measure_step(made(["fp32", "int8"])[0], ()).required
