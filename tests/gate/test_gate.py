import dataclasses
import json
import shutil
import sys
import time

import numpy as np
import pytest

from deploykit import gate as library
from deploykit.errors import BundleError, InputError, MissingError, RecipeError, StepCrashError
from deploykit.gate import Choices, Timing, gate
from deploykit.measure import fingerprint
from deploykit.measure.paired import Rules
from deploykit.runtime.bundle import Bundle
from tests.gate import made
from tests.gate.conftest import row


def names(result):
    return {found.name: found.status for found in result.rows}


def test_a_bundle_built_again_passes(bundles, judged, clock, data):
    result = judged(bundles("again", padding_bytes=100), data=str(data))
    assert result.status == "PASS"
    assert names(result) == dict.fromkeys(
        ["audit", "size", "bundle size", "length", "vectors", "single p50", "batch p50", "memory"], "PASS"
    )
    assert "bit for bit" in row(result, "vectors").sentence
    assert len(clock.asked) == 20
    assert result.skipped == ()


def test_an_int8_that_runs_in_float32_fails_by_the_audit_alone_and_soon(bundles, clock):
    old = bundles("int8", int8=True)
    new = bundles("int8-unfused", int8=True, settings={"graph_optimization": "off"})
    began = time.monotonic()
    result = gate(new, old)
    assert time.monotonic() - began < 10
    assert result.status == "FAIL"
    assert [found.name for found in result.rows if found.status == "FAIL"] == ["audit"]
    assert "asked for int8" in row(result, "audit").sentence
    assert "1 matrix product in fp32, none in int8" in row(result, "audit").sentence
    assert "cannot fuse" in row(result, "audit").look
    assert clock.asked == []
    assert "were not looked at" in result.skipped[0]


def test_what_the_manifest_says_of_an_audit_is_not_believed(bundles, judged):
    new = bundles("int8-unfused", int8=True, settings={"graph_optimization": "off"})
    assert Bundle.open(new).manifest.variants[0].audit["products"] == {"int8": 1}
    assert judged(new, bundles("int8", int8=True)).status == "FAIL"


def test_a_baseline_that_lost_its_int8_as_well_does_not_excuse_it(bundles, judged, tmp_path):
    settings = {"graph_optimization": "off"}
    result = judged(
        bundles("int8-unfused", int8=True, settings=settings),
        made.bundle(tmp_path / "too.bundle", int8=True, settings=settings, padding_bytes=10),
    )
    assert row(result, "audit").status == "FAIL"


def test_with_all_it_goes_on_after_a_failure(bundles, judged, clock):
    new = bundles("int8-unfused", int8=True, settings={"graph_optimization": "off"})
    result = judged(new, bundles("int8", int8=True), everything=True)
    assert result.status == "FAIL"
    assert row(result, "single p50").status == "PASS"
    assert len(clock.asked) == 20


def test_a_dropped_normalisation_fails_though_every_cosine_is_1(bundles, judged, clock, data):
    result = judged(bundles("no-norm", normalized=False), data=str(data))
    assert result.status == "FAIL"
    assert [found.name for found in result.rows if found.status == "FAIL"] == ["length"]
    assert row(result, "drift").figures["measured"] == pytest.approx(0, abs=1e-6)
    assert "normalisation was dropped" in row(result, "length").sentence
    assert "normalized is off, was on" in row(result, "length").look
    assert clock.asked == []


def test_a_scale_that_moved_fails_where_nothing_is_normalized(bundles, judged, data, monkeypatch):
    from deploykit.gate import accuracy

    load = np.load
    monkeypatch.setattr(
        accuracy.np, "load", lambda path, **k: load(path, **k) * (1.2 if "candidate" in str(path) else 1)
    )
    result = judged(bundles("no-norm-2", normalized=False, padding_bytes=9), bundles("no-norm", normalized=False))
    assert row(result, "length").status == "FAIL"
    assert "dropped" not in row(result, "length").sentence


def test_another_pooling_fails_by_drift_and_is_named(bundles, judged, data):
    result = judged(bundles("last", pooling="last"), data=str(data))
    assert row(result, "drift").status == "FAIL"
    assert "pooling is last, was mean" in row(result, "drift").look
    assert "worst input" in row(result, "drift").look


def test_another_pooling_behind_the_same_card_is_what_is_guessed(judged, bundles, data, tmp_path):
    new = made.bundle(tmp_path / "liar.bundle", pooling="last", card=made.text_card())
    found = row(judged(new, data=str(data)), "drift")
    assert found.status == "FAIL"
    assert "mostly another pooling" in found.look
    assert "--retrained judges one that was trained again" in found.look


def test_a_careless_requantization_fails_and_a_careful_one_passes(bundles, judged, data):
    careless = judged(bundles("careless", noise=0.25), data=str(data))
    assert row(careless, "drift").status == "FAIL"
    assert 0.01 < row(careless, "drift").figures["measured"] < 0.1
    assert row(careless, "p1").status == "FAIL"
    assert row(careless, "length").status == "PASS"
    careful = judged(bundles("careful", noise=0.02), data=str(data))
    assert careful.status == "PASS"
    assert 0 < row(careful, "drift").figures["measured"] < 0.001


def test_a_model_lowered_less_well_fails_though_it_is_close_to_the_baseline(bundles, judged, data):
    old = bundles("lowered", int8=True, lowering_noise=0.08)
    new = bundles("lowered-less-well", int8=True, lowering_noise=0.13)
    result = judged(new, old, data=str(data))
    assert row(result, "drift").status == row(result, "p1").status == "PASS"
    found = row(result, "drift to fp32")
    assert found.status == result.status == "FAIL"
    assert found.limit == "drift<=+20%"
    assert found.figures["candidate"] > 1.5 * found.figures["baseline"] > 0.001
    assert found.figures["change"] == pytest.approx(found.figures["candidate"] - found.figures["baseline"])
    assert "calibration" in found.look
    assert row(judged(old, new, data=str(data)), "drift to fp32").status == "PASS"
    assert row(judged(new, old, data=str(data), budget="drift<=+400%"), "drift to fp32").status == "PASS"
    assert "drift to fp32" not in names(judged(new, old, data=str(data), budget="drift<=0.01"))


def test_the_way_to_fp32_is_asked_only_of_one_precision_of_one_model(bundles, judged, data):
    of_another_model = judged(bundles("careful", noise=0.02), data=str(data))
    assert "drift to fp32" not in names(of_another_model)
    lower = judged(bundles("lowered", int8=True, lowering_noise=0.08), bundles(), data=str(data), everything=True)
    assert "drift to fp32" not in names(lower)


def test_a_few_inputs_do_not_tell_which_is_further_from_fp32(bundles, judged, tmp_path):
    path = tmp_path / "few.txt"
    path.write_text("w1 w2\nw3 w4\nw5 w6\n")
    old, new = bundles("lowered", int8=True, lowering_noise=0.08), bundles("worse", int8=True, lowering_noise=0.3)
    assert row(judged(new, old, data=str(path), everything=True), "drift to fp32").status == "INCONCLUSIVE"


def test_a_limit_nobody_asked_for_is_left_out_where_there_is_too_little_data(bundles, judged):
    found = row(judged(bundles("careful", noise=0.02)), "p1")
    assert found.status == "NOT MEASURED"
    assert "takes 459 inputs" in found.sentence
    asked = judged(bundles("careful", noise=0.02), budget="p1>=0.975")
    assert row(asked, "p1").status == "INCONCLUSIVE"
    assert asked.status == "INCONCLUSIVE"


def test_scored_pairs_are_judged(bundles, judged, tmp_path):
    texts = made.texts(400)
    rng = np.random.default_rng(0)
    path = tmp_path / "pairs.tsv"
    path.write_text(
        "\n".join(f"{a}\t{b}\t{rng.random():.2f}" for a, b in zip(texts[::2], texts[1::2], strict=True)) + "\n"
    )
    result = judged(bundles("careful", noise=0.02), data=f"{path}#a=1,b=2,score=3", budget="task<=5")
    assert row(result, "task").status == "PASS"
    assert "scored pairs" in row(result, "task").sentence


def test_vectors_that_are_not_finite_fail(bundles, judged, monkeypatch):
    from deploykit.gate import accuracy

    load = np.load
    spoiled = lambda path, **k: load(path, **k) * (np.nan if "candidate" in str(path) else 1)  # noqa: E731
    monkeypatch.setattr(accuracy.np, "load", spoiled)
    result = judged(bundles("careful", noise=0.02))
    assert row(result, "vectors").status == "FAIL"
    assert "not finite" in row(result, "vectors").sentence


def test_a_larger_bundle_fails_from_a_mebibyte_on(bundles, judged):
    result = judged(bundles("fat", padding_bytes=2 * 2**20))
    assert row(result, "size").status == "FAIL"
    assert row(result, "bundle size").status == "FAIL"
    small = row(judged(bundles("plump", padding_bytes=500_000)), "size")
    assert small.status == "PASS"
    assert "under 1 MiB" in small.sentence


def test_a_slower_candidate_fails_with_the_figures(bundles, judged, clock):
    clock.set((4.0, 20.0), (4.2, 20.0))
    result = judged(bundles("careful", noise=0.02))
    found = row(result, "single p50")
    assert (result.status, found.status, row(result, "batch p50").status) == ("FAIL", "FAIL", "PASS")
    assert found.figures["change"] == pytest.approx(0.05, abs=0.005)
    assert f"{100 * found.figures['change']:+.1f} % [" in found.sentence
    assert "30 pairs" in found.sentence
    assert f"hw {result.hardware['id']}" in found.sentence
    assert len(found.figures["candidate_ms"]) == 30
    assert [len(job["points"]) for _, job, _ in clock.asked] == [2] * 20 + [1] * 60


def test_a_machine_too_noisy_to_tell_says_so(bundles, judged, clock):
    clock.set((4.0, 20.0), (4.0, 20.0), spread=0.06)
    result = judged(bundles("careful", noise=0.02))
    assert result.status == "INCONCLUSIVE"
    assert "cannot tell" in row(result, "single p50").sentence
    assert "half-width" in row(result, "single p50").sentence
    assert row(result, "single p50").figures["pairs"] == 60


def test_memory_fails_above_two_percent_and_a_mebibyte(bundles, judged, clock):
    clock.set((4.0, 20.0), (4.0, 20.0), rss=(100, 110))
    assert row(judged(bundles("careful", noise=0.02)), "memory").status == "FAIL"
    clock.set((4.0, 20.0), (4.0, 20.0), rss=(10, 11))
    assert row(judged(bundles("careful", noise=0.02)), "memory").status == "PASS"


@pytest.mark.parametrize(
    ("budget", "name", "status"),
    [
        ("p50<=10%", "", ""),
        ("p50<=+10%", "single p50", "PASS"),
        ("p50<=5ms", "single p50", "PASS"),
        ("p50<=5ms", "batch p50", "FAIL"),
        ("throughput>=-5%", "batch throughput", "FAIL"),
        ("throughput>=-10%", "batch throughput", "PASS"),
        ("throughput>=300/s", "batch throughput", "PASS"),
        ("throughput>=500/s", "batch throughput", "FAIL"),
        ("p50<=-20%", "single p50", "FAIL"),
        ("memory<=50MB", "memory", "FAIL"),
        ("size<=1KB", "size", "FAIL"),
    ],
)
def test_limits_of_every_kind(bundles, judged, clock, budget, name, status):
    clock.set((4.0, 20.0), (4.25, 21.5))
    if not name:
        with pytest.raises(RecipeError, match="a change needs its sign"):
            judged(bundles("careful", noise=0.02), budget=budget)
        return
    assert row(judged(bundles("careful", noise=0.02), budget=budget, everything=True), name).status == status


def test_a_99th_percentile_takes_calls_enough(bundles, judged, clock):
    result = judged(bundles("careful", noise=0.02), budget="p99<=+3%")
    assert row(result, "single p99").status == "PASS"
    assert {job["calls"] for _, job, _ in clock.asked} == {662}
    assert "single p50" not in names(result)


def test_budget_files(tmp_path):
    path = tmp_path / "b.toml"
    path.write_text('[budget]\nlimits = "edge p50<=+5%"\n')
    assert str(library.limits(path)).startswith("drift<=0.03 p1>=0.93 task<=1.5 p50<=+5%")
    assert "memory<=+2%" in str(library.limits("p50<=4ms"))
    assert "p50<=+3%" not in str(library.limits("p99<=+3%"))
    assert "p50<=+3%" in str(library.limits("throughput>=-3%"))
    for text, says in [("[budget]\nlimit = 'x'", "no budget.limits"), ("[budget", "cannot be read")]:
        path.write_text(text)
        with pytest.raises(RecipeError, match=says):
            library.limits(path)
    with pytest.raises(RecipeError, match=r"no budget file 'none\.toml'"):
        library.limits("none.toml")


def test_errors_say_what_does_not_go_together(bundles, judged, tmp_path, data):
    old = bundles()
    new = bundles("careful", noise=0.02)
    with pytest.raises(BundleError, match=r"the baseline '.*nothing\.bundle' is missing"):
        judged(new, tmp_path / "nothing.bundle")
    with pytest.raises(BundleError, match=r"the candidate '.*nothing\.bundle' is missing"):
        judged(tmp_path / "nothing.bundle")
    with pytest.raises(InputError, match=r"are the same: .*digest"):
        judged(old, old)
    wide = made.bundle(tmp_path / "wide.bundle", card=made.text_card(dim=32), modality_dim=32)
    with pytest.raises(InputError, match="have 32 dimensions, the baseline's 16"):
        judged(wide)
    other = made.bundle(tmp_path / "tensors.bundle", card=made.text_card(modality="tensor"))
    with pytest.raises(InputError, match="encodes tensor, the baseline text"):
        judged(other)
    with pytest.raises(InputError, match=r"and 'builtin:images' holds image"):
        judged(new, data="builtin:images")
    with pytest.raises(BundleError, match=r"the baseline .* has no variant 'onnxruntime-int8'"):
        judged(f"{bundles('int8', int8=True)}@onnxruntime-int8", old)


def test_a_build_that_came_out_as_the_last_one_passes_without_a_clock(bundles, judged, clock, tmp_path):
    copied = tmp_path / "copy.bundle"
    shutil.copytree(bundles(), copied)
    result = judged(copied)
    assert result.status == "PASS"
    assert "bit for bit" in result.rows[0].sentence
    assert "nothing was compared" in result.skipped[0]
    assert clock.asked == []


def test_an_altered_bundle_is_refused(bundles, judged, tmp_path):
    broken = tmp_path / "broken.bundle"
    shutil.copytree(bundles("careful", noise=0.02), broken)
    model = broken / "models" / "fp32.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"!")
    with pytest.raises(BundleError, match=r"the candidate: .*was altered"):
        judged(broken)


def test_a_pinned_baseline(bundles, judged):
    digest = Bundle.open(bundles()).digest
    new = bundles("careful", noise=0.02)
    assert judged(new, digest=digest[:12]).baseline.digest == digest
    assert judged(new, digest=f"SHA256:{digest.upper()}").status == "PASS"
    for wrong in ("0" * 64, digest[:7], f"sha256:{digest[:7]}", "sha256:"):
        with pytest.raises(BundleError, match="is asked for"):
            judged(new, digest=wrong)


def test_another_machine_is_an_error(bundles, judged, clock, tmp_path):
    new = bundles("careful", noise=0.02)
    calibration = tmp_path / "aa.json"
    stored = {"schema": "deploykit.gate/1", "kind": "aa", "hardware": {"id": "0badcafe"}, "sentence": "0 of 12"}
    calibration.write_text(json.dumps(stored))
    with pytest.raises(MissingError, match="was measured on hardware 0badcafe, and this is"):
        judged(new, calibration=calibration)
    calibration.write_text(json.dumps({**stored, "hardware": {"id": fingerprint.machine()["id"]}}))
    assert judged(new, calibration=calibration).notes == ("0 of 12",)
    calibration.write_text("{}")
    with pytest.raises(InputError, match="no result of an A/A run"):
        judged(new, calibration=calibration)
    for lacking in ({"hardware": {}}, {"hardware": "cafe"}, {"sentence": None}):
        calibration.write_text(json.dumps({**stored, **lacking}))
        with pytest.raises(InputError, match="does not say on which hardware"):
            judged(new, calibration=calibration)
    clock.set((4.0, 20.0), (4.0, 20.0), hardware="deadbeef")
    with pytest.raises(MissingError, match=r"the audit was measured on hardware .*, and this is deadbeef"):
        judged(new)


def test_each_side_may_have_its_interpreter(bundles, clock, tmp_path):
    other = tmp_path / "python"
    other.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    other.chmod(0o755)
    result = gate(bundles(), bundles(), Choices(python=other, threads=1))
    assert result.status == "PASS"
    assert result.candidate.python == str(other)
    assert {(arm.split()[1], python) for arm, _, python in clock.asked} == {
        ("candidate", str(other)),
        ("baseline", None),
    }


def test_the_candidate_chooses_the_baselines_variant(bundles, judged):
    result = judged(f"{bundles('careful', noise=0.02)}@onnxruntime-fp32")
    assert result.baseline.name.endswith("@onnxruntime-fp32")


def test_the_result_is_plain_json(bundles, judged):
    data = json.loads(json.dumps(judged(bundles("careful", noise=0.02)).to_json(), allow_nan=False))
    assert (data["schema"], data["kind"], data["status"]) == ("deploykit.gate/1", "gate", "PASS")
    assert {"rows", "hardware", "candidate", "baseline", "budget", "seed", "noise"} <= set(data)


def test_real_processes_from_end_to_end(bundles):
    """Few pairs and a wide limit: that the parts fit, not that the clock is right."""
    choices = Choices(
        budget="p50<=+900% memory<=+50%",
        threads=1,
        timing=Timing(seconds=0.0, calls=5, warm_seconds=0.0, warm_calls=1),
        rules=Rules(screen=2, confirm=(2,), confidence=0.5),
    )
    heard = []
    result = gate(bundles("careful", noise=0.02), bundles(), choices, heard.append)
    assert result.status == "PASS"
    assert row(result, "single p50").figures["pairs"] == 2
    assert any(text.startswith("timing, screen: pair 2 of 2, at most ") for text in heard)
    assert "processes; load" in result.noise


def test_a_candidate_that_hangs_is_named(bundles, clock, monkeypatch):
    from deploykit.gate import sides

    monkeypatch.setattr(sides, "_FACTS", "tests.gate.hangs")
    with pytest.raises(StepCrashError, match=r"the candidate .* still running after 2 s"):
        gate(bundles("careful", noise=0.02), bundles(), Choices(timing=Timing(timeout_s=2)))


def test_a_bundle_against_itself_shows_the_false_alarms(bundles, clock, inside):
    heard = []
    result = library.aa(bundles(), 3, Choices(threads=1, seed=5), on_run=heard.append)
    assert (result.runs, result.count("FAIL"), result.count("PASS")) == (3, 0, 3)
    assert result.upper == pytest.approx(1 - 0.05 ** (1 / 3), abs=1e-6)
    assert "0 false alarms in 3 runs" in result.sentence
    assert len(heard) == 3
    assert {arm.split()[1] for arm, _, _ in clock.asked} == {"baseline", "candidate"}
    data = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert (data["kind"], data["false_alarms"], data["runs"]) == ("aa", 0, 3)
    with pytest.raises(RecipeError, match="0 runs"):
        library.aa(bundles(), 0)


def test_rates_have_exact_bounds():
    from deploykit.gate.result import rate_bound

    assert rate_bound(0, 12) == pytest.approx(1 - 0.05 ** (1 / 12), abs=1e-6)
    assert rate_bound(12, 12) == 1.0
    assert rate_bound(1, 20) == pytest.approx(0.2161, abs=1e-4)  # Clopper and Pearson's table


def test_options_that_nobody_reads_do_not_exist():
    assert {f.name for f in dataclasses.fields(Choices)} == {
        *(
            "budget",
            "data",
            "workload",
            "threads",
            "everything",
            "seed",
            "digest",
            "calibration",
            "python",
            "baseline_python",
        ),
        *("max_minutes", "retrained", "timing", "rules"),
    }
