"""From artefacts to what is handed over: what a failed step or a search without an outcome leaves behind."""

from types import SimpleNamespace

import numpy as np
import pytest

from deploykit.drift import compare
from deploykit.errors import CheckError, MissingError
from deploykit.pipeline.decide import BudgetError, decide
from deploykit.pipeline.plan import _measure_step
from deploykit.recipe import Recipe


@pytest.fixture
def made(tmp_path):
    """A recipe for precisions under a budget, and the artefacts of fp32 and of an int8 that drifts too much."""

    def make(precisions, limits="drift<=0.01", n=600, noise=0.5):
        given = {"source": {"model": "m"}, "variants": {"targets": ["onnxruntime"], "precisions": precisions}}
        budget = {} if limits is None else {"budget": {"limits": limits}}
        recipe = Recipe.from_data(given | budget, where="the test")
        exact = np.random.default_rng(0).normal(size=(n, 8)).astype(np.float32)
        rough = exact + noise * np.random.default_rng(1).normal(size=exact.shape).astype(np.float32)
        artifacts = {"export": SimpleNamespace(path=tmp_path)}
        for precision, got in (("fp32", exact), ("int8", rough)):
            compiled = {"path": "model.onnx", "target": "onnxruntime", "precision": precision, "lowered": {}}
            verified = {"drift": compare(exact, got).to_json() if n else {}, "proof": {}}
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


def kept(decided):
    return [name.partition(":")[2] for name in decided.artifacts if name.startswith("verify:")]


def test_without_a_budget_of_ones_own_the_standard_one_holds(made):
    decided = decide(*made(["fp32", "int8"], None), ())
    assert kept(decided) == ["onnxruntime-fp32"]
    (refused,) = decided.refused
    assert (refused["variant"], refused["exit_code"]) == ("onnxruntime-int8", 1)
    assert "outside drift<=0.01" in refused["reason"]
    assert "--budget none" in refused["hint"]


def test_no_budget_is_asked_for_by_name(made):
    decided = decide(*made(["fp32", "int8"], "none"), ())
    assert kept(decided) == ["onnxruntime-fp32", "onnxruntime-int8"]
    assert decided.refused == decided.notes == ()


@pytest.mark.parametrize(("n", "why"), [(60, "takes 459 inputs"), (20, "takes 459 inputs"), (0, "no evaluation data")])
def test_what_too_few_inputs_leave_undecided_is_handed_over_as_not_judged(made, n, why):
    decided = decide(*made(["fp32", "int8"], None, n=n, noise=0.01), ())
    assert kept(decided) == ["onnxruntime-fp32", "onnxruntime-int8"]
    (row,) = (row for row in decided.candidates if row["variant"] == "onnxruntime-int8")
    assert row["reason"].startswith("not judged: ")
    (note,) = decided.notes
    assert note.startswith("onnxruntime-int8 was not judged by the budget 'standard'")
    assert why in note
    assert "--evaluation FILE" in note


def test_a_budget_of_ones_own_refuses_what_it_cannot_decide(made):
    decided = decide(*made(["fp32", "int8"], "standard", n=60, noise=0.01), ())
    assert kept(decided) == ["onnxruntime-fp32"]
    assert "takes 459 inputs" in decided.refused[0]["reason"]


def test_few_inputs_do_not_save_what_they_show_to_be_outside(made):
    decided = decide(*made(["fp32", "int8"], None, n=60), ())
    assert kept(decided) == ["onnxruntime-fp32"]
    assert "p1>=0.975" in decided.refused[0]["reason"]


@pytest.mark.parametrize("n", [0, 20])
def test_fp32_has_nothing_to_prove(made, n):
    decided = decide(*made(["fp32"], None, n=n, noise=0.01), ())
    assert "onnxruntime-fp32" in kept(decided)
    assert decided.refused == decided.notes == ()


def test_what_auto_kept_on_a_busy_machine_is_provisional(made):
    recipe, artifacts = made(["auto"], None)
    row = {"p50_ms": 1.0, "low_ms": 0.9, "high_ms": 1.1, "shape": [8]}
    latency = {"onnxruntime-fp32": {"batch": row}}
    for others, count in ((0.6, 1), (0.0, 0)):
        noise = {"others": others, "stolen": 0.0, "load": 3.0}
        artifacts["measure"] = SimpleNamespace(metadata={"latency": latency, "busy": noise})
        notes = decide(recipe, artifacts, ()).notes
        assert [note.startswith("what auto kept is provisional: the machine was busy") for note in notes] == [
            True
        ] * count


@pytest.mark.parametrize(("codes", "kind"), [((1, 4), CheckError), ((4, 4), MissingError)])
def test_no_bundle_is_made_of_no_variant(made, codes, kind):
    recipe, artifacts = made(["fp32"])
    alone = {"export": artifacts["export"]}
    refused = [
        {"variant": f"v{i}", "reason": f"reason {i}", "hint": f"hint {i}", "exit_code": code}
        for i, code in enumerate(codes)
    ]
    with pytest.raises(kind, match=r"no bundle was written \(v0: reason 0; v1: reason 1\)") as caught:
        decide(recipe, alone, refused)
    assert caught.value.hint == "hint 0; hint 1"
    assert caught.value.exit_code == min(codes)
